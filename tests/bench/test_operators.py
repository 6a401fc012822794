# SPDX-License-Identifier: Apache-2.0
"""Cases, inputs, bytes, and the rows that the command ``ops`` gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.operators import default_cases, functions
from bench.ops import BENCHES, KINDS
from bench.ops.case import MODES, Case, make_inputs
from bench.results import COLUMNS, read
from pyindexnet.testing import SPECS

SIZE = (2, 3, 4, 6)  # 144 elements, 36 in the low resolution, 144 logits or 48 holistic ones


@pytest.mark.parametrize(
    ("op", "maps", "forward", "backward"),
    [
        ("indexed_pool", "depthwise", 144 + 144 + 36, 36 + 2 * (144 + 144)),
        ("indexed_pool", "holistic", 144 + 48 + 36, 36 + 2 * (144 + 48)),
        ("indexed_upsample", "depthwise", 36 + 144 + 144, 144 + 2 * (36 + 144)),
        ("indexed_upsample", "holistic", 36 + 48 + 144, 144 + 2 * (36 + 48)),
        ("indexed_pool_skip", "depthwise", 144 + 144 + 36 + 144, 36 + 144 + 2 * (144 + 144)),
        ("non_background_pool", "window 5", 144 + 48 + 144, 144 + 2 * (144 + 48)),  # the mask: 2 x 1 x 4 x 6
        # One group of 9 taps in the plane of x; 25 taps of 2 x 2 sub-positions; 25 taps in the plane of y.
        ("grouped_spatial_fusion", "fusion 3 x 3", 144 + 9 * 48 + 144, 144 + 2 * (144 + 9 * 48)),
        ("dynamic_upsample", "up 5 x 5", 144 + 100 * 48 + 576, 576 + 2 * (144 + 100 * 48)),
        # A number for each cell, and a generator for each of two samples.
        ("affinity_upsample", "affinity up 5 x 5", 144 + 48 + 2 * 100 + 576, 576 + 2 * (144 + 48 + 2 * 100)),
        ("affinity_downsample", "affinity down 6 x 6", 144 + 12 + 2 * 36 + 36, 36 + 2 * (144 + 12 + 2 * 36)),
        # Two kernels of 5 x 5 for each sample; one value for each of 2 x 3 positions, or four for each of 3 groups.
        ("affinity_map", "encode 5 x 5", 144 + 4 * 25 + 12, 12 + 2 * (144 + 4 * 25)),
        ("affinity_moments", "moments 5 x 5", 144 + 4 * 25 + 24, 24 + 2 * (144 + 4 * 25)),
        ("dynamic_downsample", "down 5 x 5", 144 + 25 * 12 + 36, 36 + 2 * (144 + 25 * 12)),
    ],
)
@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.float16, 2)])
def test_bytes_counted_by_hand(op: str, maps: str, forward: int, backward: int, dtype: torch.dtype, itemsize: int) -> None:
    case = Case(SIZE, dtype, maps=maps)
    found = [BENCHES[op].bytes_moved(case, mode) for mode in MODES]
    assert found == [itemsize * forward, itemsize * backward, itemsize * (forward + backward)]


def test_every_operator_has_a_benchmark() -> None:
    assert set(BENCHES) == set(SPECS)


@pytest.mark.parametrize(("op", "maps"), [(name, kind) for name, bench in BENCHES.items() for kind in bench.kinds])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inputs(op: str, maps: str, layout: str) -> None:
    bench = BENCHES[op]
    case = Case((2, 4, 4, 6), layout=layout, maps=maps)
    tensors = make_inputs(bench, case)
    x, logits, *_ = tensors.ours
    outputs = bench.spec.function(*tensors.ours, **bench.options(case))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [y.shape for y in outputs] == [c.shape for c in tensors.cotangents] == [torch.Size(s) for s in bench.outputs(case)]
    moved = bench.bytes_moved(case, "forward")
    assert moved == sum(t.nbytes for t in (*tensors.ours, *outputs))
    assert torch.equal(logits, tensors.published[1])
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert all(t.is_contiguous(memory_format=wanted) for t in (x, *outputs, *tensors.cotangents) if t.dim() == 4)
    if bench.spec.tensors[1] == "logits" and logits.dim() == 5:
        n, c, k, h, w = logits.shape
        # channels_last: the channels of a merged convolution, position-major for ours, channel-major for the published formula
        assert logits.transpose(1, 2).reshape(n, c * k, h, w).is_contiguous(memory_format=wanted) or layout == "contiguous"
        if layout == "channels_last":
            assert logits.permute(0, 3, 4, 2, 1).is_contiguous()
            assert tensors.published[1].permute(0, 3, 4, 1, 2).is_contiguous()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_default_cases(device: str) -> None:
    cases = default_cases(device, torch.float32)
    assert len(set(cases)) == len(cases)
    assert {(c.layout, c.maps) for c in cases} >= {
        (a, b) for a in ("contiguous", "channels_last") for b in ("depthwise", "holistic")
    }
    assert {c.maps for c in cases} == set(KINDS)
    own = [bench for bench in BENCHES.values() if bench.own_cases(device, torch.float32, quick=True)]
    layouts = 1 if device == "cpu" else 2
    assert len(default_cases(device, torch.float32, quick=True)) == layouts * (2 + len(own))
    shapes = {c.shape for c in default_cases("cpu", torch.float32)}
    assert {"1x64x64x64", "1x64x128x128", "1x64x256x256", "1x32x512x512", "1x32x1024x1024"} <= shapes


def _run(tmp_path: Path, *more: str) -> list[dict[str, str]]:
    effort = ("--rounds", "3", "--seconds", "0", "--max-seconds", "0")
    base = ("ops", "--backend", "reference", "--size", "1x4x4x4", "--layout", "contiguous", "--allocator", "default")
    assert main([*base, *effort, "--results", str(tmp_path), *more]) == 0
    return read(tmp_path / "cpu-ops.csv")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _run(tmp_path, "--no-compile", "--commit", "abc")
    assert [r["backend"] for r in rows[:3]] == ["copy", "eager", "reference"]
    assert len(rows) == len(MODES) * sum((3 + len(bench.sides)) * len(bench.kinds) for bench in BENCHES.values())
    assert {r["shape"] for r in rows} == {"1x4x4x4", *(f"1x4x4x4 {kind}" for kind in KINDS if kind != "depthwise")}
    for row in rows:
        assert tuple(row) == COLUMNS
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert int(row["rounds"]) == 3
        case = Case((1, 4, 4, 4), maps=row["shape"].partition(" ")[2] or "depthwise")
        moved = BENCHES[row["op"]].bytes_moved(case, row["mode"])
        assert float(row["gb_s"]) == pytest.approx(moved / float(row["p50_ms"]) / 1e6, rel=1e-3)
        assert (row["commit"], row["allocator"], row["speedup_compile"]) == ("abc", "default", "")
        if row["backend"] == "copy":
            assert float(row["pct_copy"]) == 100
            assert float(row["peak_mib"]) * 2**20 == pytest.approx(moved / 2, rel=1e-3)
        if row["backend"] == "eager":
            assert float(row["speedup_eager"]) == 1
    assert "| indexed_pool | forward | float32 |" in capsys.readouterr().out
    assert len(_run(tmp_path, "--no-compile", "--op", "indexed_pool", "--mode", "forward")) == len(rows) + 6


def test_compiled_side(tmp_path: Path) -> None:
    rows = _run(tmp_path, "--op", "indexed_upsample", "--mode", "forward")
    assert [r["backend"] for r in rows[:4]] == ["copy", "eager", "compile", "reference"]
    assert all(float(r["speedup_compile"]) > 0 for r in rows)


def test_compiled_formula_that_is_not_published() -> None:
    """It is a side of its own where ``torch.compile`` is timed."""
    bench = BENCHES["dynamic_upsample"]
    case = Case((1, 4, 4, 4), maps=bench.kinds[0])
    assert list(functions(bench, case, ["reference"], "compile")) == ["eager", "compile", "compile_low", "reference"]
    assert list(functions(bench, case, ["reference"], None)) == ["eager", "reference"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--size", "1x2x5x4"], "bench: size must be (N, C, H, W) with even H and W, got (1, 2, 5, 4)"),
        (["ops", "--threads", "0"], "bench: --threads must be at least 1, got 0"),
        (["report", "--results", "/nowhere"], "bench: /nowhere must hold result files, got none"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    more = ["--allocator", "default", "--no-save"] if arguments[0] == "ops" else []
    assert main([*arguments, *more]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
@pytest.mark.parametrize("more", [("--no-compile", "--mode", "forward"), ("--op", "indexed_pool")], ids=["all", "compiled"])
def test_command_on_a_gpu(tmp_path: Path, more: tuple[str, ...]) -> None:
    effort = ("--rounds", "3", "--seconds", "0", "--max-seconds", "0", "--quick")
    arguments = ["ops", "--device", "cuda", "--size", "1x8x32x32", "--layout", "contiguous", *effort, *more]
    assert main([*arguments, "--results", str(tmp_path)]) == 0
    rows = read(tmp_path / "cuda-ops.csv")
    assert {"copy", "eager", "triton"} <= {r["backend"] for r in rows}
    assert ("--op" in more) == ("compile" in {r["backend"] for r in rows})
    assert {r["op"] for r in rows} == ({"indexed_pool"} if "--op" in more else set(BENCHES))
    assert all(float(r["host_ms"]) > 0 for r in rows)
