# SPDX-License-Identifier: Apache-2.0
"""No numbers for a side that computes something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.__main__ import main
from bench.gate import WrongResult, check_backend, check_case, check_published
from bench.ops import BENCHES
from bench.ops.case import Case, OpBench, make_inputs
from pyindexnet import backends

ALL = [pytest.param(bench, id=name) for name, bench in BENCHES.items()]
KINDS = [pytest.param(bench, kind, id=f"{name}-{kind}") for name, bench in BENCHES.items() for kind in bench.kinds]
needs_cpu = pytest.mark.skipif(
    backends.why_not("indexed_pool", "cpu") is not None, reason=str(backends.why_not("indexed_pool", "cpu"))
)


def _scaled(value: Any, factor: float) -> Any:
    return tuple(v * factor for v in value) if isinstance(value, tuple) else value * factor


@pytest.mark.parametrize("bench", ALL)
def test_published_formula_is_the_operator(bench: OpBench) -> None:
    check_published(bench)
    wrong = replace(bench, published=lambda *t, **more: _scaled(bench.published(*t, **more), 1 + 1e-9))
    with pytest.raises(WrongResult, match=f"{bench.name}, published formula"):
        check_published(wrong)
    for name, formula in bench.formulas.items():
        other = {name: lambda *t, formula=formula, **more: _scaled(formula(*t, **more), 1 + 1e-9)}
        with pytest.raises(WrongResult, match=f"{bench.name}, {name}"):
            check_published(replace(bench, formulas=other))


@needs_cpu
@pytest.mark.parametrize("bench", ALL)
def test_backend(bench: OpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_backend(bench, "cpu", (torch.float32,), "cpu") >= 3 * 2 * (len(bench.spec.outputs) + 2)
    right = getattr(torch.ops.pyindexnet, f"{bench.name}_reference")
    monkeypatch.setattr(torch.ops.pyindexnet, bench.name, lambda *a: _scaled(right(*a), 1 + 1e-5))
    with pytest.raises(WrongResult, match=f"{bench.name}, cpu, torch.float32"):
        check_backend(bench, "cpu", (torch.float32,), "cpu")


def _case(maps: str, layout: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case((2, 8, 8, 6), dtype, layout, maps)


@pytest.mark.parametrize(("bench", "maps"), KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_timed_tensors(bench: OpBench, maps: str, layout: str, dtype: torch.dtype) -> None:
    case = _case(maps, layout, dtype)
    tensors = make_inputs(bench, case)
    for name in ("reference", "compile"):  # the eager formula stands for the compiled one, which is judged by it
        check = bench.peer(case) if name == "compile" else lambda *t: bench.spec.function(*t, **bench.options(case))
        check_case(bench, case, name, check, tensors)


class _WrongGradient(torch.autograd.Function):
    """The identity, with a gradient that is off in its last element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        grad.view(-1)[-1] += 1e-3
        return grad


@pytest.mark.parametrize("maps", ["depthwise", "holistic"])
@pytest.mark.parametrize(("part", "label"), [(0, "grad x"), (1, "grad logits"), (2, "y")])
def test_one_wrong_element_in_the_timed_tensors(maps: str, part: int, label: str) -> None:
    bench = BENCHES["indexed_pool"]
    case = _case(maps, "contiguous")
    tensors = make_inputs(bench, case)

    def wrong(x: Tensor, logits: Tensor) -> Tensor:
        x = _WrongGradient.apply(x) if part == 0 else x
        logits = _WrongGradient.apply(logits) if part == 1 else logits
        y = bench.spec.function(x, logits, backend="reference")
        if part != 2:
            return y
        off = torch.zeros_like(y)
        off[-1, -1, -1, -1] = 1e-3
        return y + off

    with pytest.raises(WrongResult, match=f"indexed_pool, mine, .*: {label}: error"):
        check_case(bench, case, "mine", wrong, tensors)


@needs_cpu
def test_command_refuses_a_wrong_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch.ops.pyindexnet.indexed_upsample_reference
    monkeypatch.setattr(torch.ops.pyindexnet, "indexed_upsample", lambda *a: right(*a) * 1.001)
    command = [
        "ops",
        "--backend",
        "cpu",
        "--size",
        "1x4x4x4",
        "--allocator",
        "default",
        "--no-compile",
        "--results",
        str(tmp_path),
    ]
    assert main(command) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("note: load average")]
    assert len(errors) == 1
    assert errors[0].startswith("error: indexed_upsample, cpu, torch.float32")
    assert not printed.out  # not even of the operators that are right
    assert not list(tmp_path.iterdir())
