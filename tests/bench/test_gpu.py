# SPDX-License-Identifier: Apache-2.0
"""``python -m bench gpu``: its time limit, what it says of what is missing, and that its sections are complete."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.command import make_parser, planned
from bench.gpu import START_UP, Section, run_section, run_sections, sections
from bench.models import PRECISIONS
from bench.networks import NETWORKS
from bench.ops import BENCHES
from bench.results import CASE, COLUMNS, read

TINY = ("--device", "cpu", "--allocator", "default", "--layout", "contiguous", "--rounds", "3", "--seconds", "0")
OPS = ("ops", *TINY, "--max-seconds", "0", "--backend", "reference", "--size", "1x4x4x4", "--no-compile")


def python(program: str) -> tuple[str, ...]:
    return sys.executable, "-c", program


def write(path: Path, keys: list[tuple[str, ...]]) -> str:
    """A program that appends a row of each of these cases, as a section does."""
    lines = "".join(",".join(dict(zip(CASE, key, strict=True)).get(c, "1") for c in COLUMNS) + "\n" for key in keys)
    header = ",".join(COLUMNS) + "\n"
    written = f"p.write_text((p.read_text() if p.exists() else {header!r}) + {lines!r})"
    return f"from pathlib import Path; p = Path({str(path)!r}); {written}"


def test_how_a_section_ends(tmp_path: Path) -> None:
    assert run_section(python("pass"), 60) is None
    failed = run_section(python("import sys; print('ignored', file=sys.stderr); sys.exit('error: no such kernel')"), 60)
    assert failed == "exit status 1: error: no such kernel"
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    begin = time.monotonic()
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run_section(python(program), 1) == "ended after 1 s"
    assert time.monotonic() - begin < 3
    time.sleep(3)
    assert not (tmp_path / "late").exists()  # its processes are ended too


def test_what_is_missing_is_listed_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*OPS, "--op", "indexed_pool", "--mode", "forward")
    keys = planned(make_parser().parse_args(arguments))
    assert [key[-1] for key in keys] == ["1x4x4x4", "1x4x4x4 holistic"]
    path = tmp_path / "cpu-ops.csv"
    programs = {
        "whole": write(path, keys),
        "half": write(path, keys[:1]),
        "stopped": write(path, keys[1:]) + "; import time; time.sleep(60)",
        "broken": "import sys; sys.exit('error: illegal memory access')",
    }
    wanted = [Section(name, arguments, 5 if name == "stopped" else 60) for name in (*programs, "late")]
    clock = iter([0.0, 0.0, 0.0, 0.0, 0.0, 400.0])
    missing = run_sections(wanted, 400 + START_UP / 2, tmp_path, lambda s: python(programs[s.name]), lambda: next(clock))
    case = "indexed_pool, forward, float32, contiguous, 1x4x4x4"
    assert missing == [
        f"half: {case} holistic: ended without it",
        f"stopped: {case}: ended after 5 s",
        f"broken: {case}: exit status 1: error: illegal memory access",
        f"broken: {case} holistic: exit status 1: error: illegal memory access",
        f"late: {case}: not started, 10 s were left",
        f"late: {case} holistic: not started, 10 s were left",
    ]
    assert len(read(path)) == 4
    assert "--- whole: 60 s at most" in capsys.readouterr().out


def test_no_section_gets_more_than_what_is_left(tmp_path: Path) -> None:
    section = Section("long", (*OPS, "--op", "indexed_pool", "--mode", "forward"), 60)
    clock = iter([0.0, 100.0])
    begin = time.monotonic()
    missing = run_sections(
        [section], 101 + START_UP, tmp_path, lambda s: python("import time; time.sleep(0.1)"), lambda: next(clock)
    )
    assert len(missing) == 2
    assert time.monotonic() - begin < START_UP


def test_plan_is_what_is_measured(tmp_path: Path) -> None:
    """The cases of both commands, in their order, as the result files name them."""
    ops = (*OPS, "--dtype", "float32", "bfloat16", "--op", "indexed_upsample", "dynamic_upsample", "--mode", "forward")
    models = ("models", *TINY, "--max-seconds", "0", "--backend", "auto", "--model", "indexnet_matting", "--mode", "forward")
    for arguments in (ops, (*models, "--dtype", "amp-bfloat16", "--size", "1x4x32x32")):
        assert main([*arguments, "--results", str(tmp_path), "--commit", "abc"]) == 0
        rows = read(tmp_path / f"cpu-{arguments[0]}.csv")
        assert list(dict.fromkeys(tuple(row[name] for name in CASE) for row in rows)) == planned(
            make_parser().parse_args(arguments)
        )


def test_sections_hold_everything() -> None:
    """Networks and operators, forward and training, precisions, channels_last, graphs and the compiled peer."""
    found = sections()
    assert len({section.name for section in found}) == len(found)
    parsed = [section.parsed() for section in found]
    assert all(arguments.device == "cuda" for arguments in parsed)
    keys = {key for arguments in parsed for key in planned(arguments)}
    assert {key[0] for key in keys} == {*NETWORKS, *BENCHES}
    networks = {key[:4] for key in keys if key[0] in NETWORKS}
    modes = ("forward", "training step")
    types = ("float32", "amp-float16", "amp-bfloat16")
    assert set(types) <= set(PRECISIONS)
    assert networks == {(n, mode, dtype, "channels_last") for n in NETWORKS for mode in modes for dtype in types}
    operators = {key[:4] for key in keys if key[0] in BENCHES}
    assert operators == {
        (op, mode, dtype, layout)
        for op in BENCHES
        for mode in ("forward", "forward+backward")
        for dtype in ("float32", "float16", "bfloat16")
        for layout in ("contiguous", "channels_last")
    }
    tuned = [a for a in parsed if a.command == "models" and "max-autotune" in a.peer]
    assert {key[:3] for a in tuned for key in planned(a)} == {(n, mode, dtype) for n, mode, dtype, _ in networks}
    assert {a.model[0] for a in parsed if a.command == "models" and a.graphs} == set(NETWORKS)
    assert {op for a in parsed if a.command == "ops" and a.max_autotune for op in a.op} == set(BENCHES)
    # What compiles for minutes comes after everything that does not.
    first = min(i for i, section in enumerate(found) if section.name.startswith("max-autotune"))
    assert {key[0] for section in found[:first] for key in planned(section.parsed())} == {*NETWORKS, *BENCHES}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "lsanet"], "bench: --only must be part of a section's name, got lsanet"),
        (["--minutes", "0"], "bench: --minutes must be more than 0, got 0"),
        ([], "bench: gpu: PyTorch sees no CUDA device"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--list", "--only", "network:", "max-autotune:tmfnet:training:float32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "network:indexnet_matting: 9 cases, 90 s at most"
    assert lines[-2] == "max-autotune:tmfnet:training:float32: 1 cases, 150 s at most"
    assert len(lines) == 8


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """The command itself, as far as its first section comes in its time."""
    command = [sys.executable, "-m", "bench", "gpu", "--minutes", "2", "--only", "network:indexnet", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sides = {row["backend"] for row in read(tmp_path / "cuda-models.csv")}
    assert "eager" in sides
    assert any(side.endswith("+fuse+graph") for side in sides)
    assert (tmp_path / "cuda-skipped.txt").read_text()
