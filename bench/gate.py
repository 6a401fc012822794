# SPDX-License-Identifier: Apache-2.0
"""What must be right before anything is timed: every side against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyindexnet.ops._common import SUFFIX
from pyindexnet.testing import make_tensors, measure, tolerance
from pyindexnet.testing.parity import error, run

from .ops.case import LAYOUTS, Case, OpBench, Tensors
from .results import COMPILE, MAX_AUTOTUNE


class WrongResult(RuntimeError):
    """A side does not compute the operator: there are no numbers."""


def check_backend(bench: OpBench, backend: str, dtypes: Sequence[torch.dtype], device: str, samples: int | None = None) -> int:
    """Outputs and gradients of a backend under the tolerance rule of the tests, on small samples, ``samples`` at most.

    Returns:
        The number of comparisons.
    Raises:
        WrongResult: one is out of bounds.
    """
    done = 0
    for sample in bench.timed_samples()[:samples]:
        for dtype in dtypes:
            for layout in LAYOUTS:
                for row in measure(bench.spec, sample, SUFFIX[backend], dtype, device, layout):
                    done += 1
                    if not row.ok:
                        raise WrongResult(f"{bench.name}, {backend}, {dtype}, {layout}, {sample.id}: {row}")
    return done


def check_published(bench: OpBench) -> None:
    """The peers' formulas against the reference, in float64, all kinds of cases.

    Raises:
        WrongResult: they differ by more than float64 rounding.
    """
    for maps in bench.kinds:
        case = Case((2, 4, 6, 8), torch.float64, maps=maps)
        tensors = make_tensors(bench.spec, bench.sample(case), torch.float64)
        cotangents = tuple(torch.ones(shape, dtype=torch.float64) for shape in bench.outputs(case))
        for name, formula in {"published formula": bench.peer(case), **bench.peers(case)}.items():
            _compare(bench, case, name, formula, _reference(bench, case), tensors, cotangents, tuple)


def check_case(bench: OpBench, case: Case, name: str, function: Callable[..., Any], tensors: Tensors) -> None:
    """A side on the timed tensors themselves, compared on the last image and its last two channels.

    Our backends are judged by the reference in the case's dtype; compiled code by the eager formula that it compiles.

    Raises:
        WrongResult: an output or a gradient is out of bounds.
    """
    # The gradient of a holistic map is a sum over all channels.
    channels = slice(-2, None) if case.maps == "depthwise" else slice(None)

    def corner(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(t[-1:, channels] for t in values)

    judge, inputs = (
        (bench.peer(case), tensors.published) if name in (COMPILE, MAX_AUTOTUNE) else (_reference(bench, case), tensors.ours)
    )
    _compare(bench, case, name, function, judge, inputs, tensors.cotangents, corner)


def _reference(bench: OpBench, case: Case) -> Callable[..., Any]:
    return lambda *tensors: bench.spec.reference(*bench.arguments(case, *tensors))


def _compare(
    bench: OpBench,
    case: Case,
    name: str,
    function: Callable[..., Any],
    judge: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...],
    select: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
) -> None:
    """``function`` on all of the inputs; ``select`` takes the part of them, and of what it gives, that is compared."""
    values = select(sum(run(function, inputs, cotangents), ()))
    part, grads = select(inputs), select(cotangents)
    judged = sum(run(judge, part, grads), ())
    gold = sum(run(_reference(bench, case), tuple(t.cpu().double() for t in part), grads), ())
    terms = bench.spec.terms(bench.sample(case))
    labels = [*((n, n) for n in bench.spec.outputs), *((f"grad {n}", n) for n in bench.spec.names(bench.sample(case)))]
    for (label, key), value, exact, same in zip(labels, values, gold, judged, strict=True):
        bound, found = tolerance(exact.detach(), error(same, exact), terms[key], case.dtype), error(value, exact)
        if found > bound:
            where = f"{bench.name}, {name}, {case.dtype}, {case.layout}, {case.shape}"
            raise WrongResult(f"{where}: {label}: error {found:.3e}, bound {bound:.3e}")
