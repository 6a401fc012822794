# SPDX-License-Identifier: Apache-2.0
"""``python -m bench ops``: every operator against its published formula, eager and compiled, and against a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyindexnet import backends
from pyindexnet.ops._common import TRITON_INTERPRETED

from .gate import check_backend, check_case, check_published
from .ops import BENCHES, KINDS
from .ops.case import LAYOUTS, Case, OpBench, Tensors, make_inputs
from .results import COMPILE, MAX_AUTOTUNE, Row, make_row
from .run import Clock, Effort, Side, time_sides

SIZES = {
    "cpu": ((1, 64, 64, 64), (1, 64, 128, 128), (1, 64, 256, 256), (1, 32, 512, 512), (1, 32, 1024, 1024)),
    # From within the L2 cache (60 MB on an H200) to far beyond it.
    "cuda": (
        (1, 64, 128, 128),
        (1, 64, 256, 256),
        (1, 32, 1024, 1024),
        (8, 64, 256, 256),
        (8, 32, 512, 512),
        (32, 32, 512, 512),
    ),
}
#: Sizes at which the other layout and the other kind of map are measured as well.
MORE = {"cpu": ((1, 64, 128, 128), (1, 32, 512, 512)), "cuda": ((1, 64, 256, 256), (8, 32, 512, 512))}
QUICK = {"cpu": ((1, 64, 64, 64), (1, 64, 256, 256)), "cuda": ((1, 64, 256, 256), (8, 32, 512, 512))}
#: Modes of torch.compile by the name of the side. Graphs of its own would copy the inputs, and device time is what is timed.
COMPILE_MODES = {COMPILE: None, MAX_AUTOTUNE: "max-autotune-no-cudagraphs"}


def default_cases(device: str, dtype: torch.dtype, quick: bool = False) -> list[Case]:
    """All sizes depthwise and contiguous; two also channels_last, the larger of them also holistic. And operators' own.

    ``quick``: two sizes, and one for an operator of its own; contiguous, on a GPU in both layouts.
    """
    sizes = (QUICK if quick else SIZES)[device]
    cases = [Case(size, dtype, device=device) for size in sizes]
    if not quick:
        cases += [Case(size, dtype, "channels_last", device=device) for size in MORE[device]]
        cases += [Case(MORE[device][-1], dtype, layout, "holistic", device) for layout in LAYOUTS]
    cases += [case for bench in BENCHES.values() for case in bench.own_cases(device, dtype, quick)]
    if quick and device == "cuda":
        cases = [replace(case, layout=layout) for case in cases for layout in LAYOUTS]
    return cases


def all_cases(sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Case]:
    """The given sizes in every layout, of every kind."""
    return [Case(tuple(size), dtype, layout, maps, device) for maps in KINDS for layout in LAYOUTS for size in sizes]


def fused_backends(device: str) -> list[str]:
    """Our backends, other than the reference, that run on a device of this machine at full speed.

    Raises:
        ValueError: there is none; the message has the reasons.
    """
    op, probe = next(iter(BENCHES)), torch.empty(0, device=device)
    reasons = {name: backends.why_not(op, name, probe) for name in backends.BACKENDS if name != "reference"}
    if TRITON_INTERPRETED:
        reasons["triton"] = "TRITON_INTERPRET=1 is set"
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        raise ValueError(f"bench: no fused backend runs on {device}: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()))
    return names


def make_side(
    name: str, function: Callable[..., Any], inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...], mode: str
) -> Side:
    """A side that runs ``function(*inputs)`` in a mode; in ``backward`` the forward before it is not timed."""
    if mode == "forward":
        return Side(name, lambda _: function(*inputs))
    leaves = tuple(t.detach().requires_grad_() for t in inputs)

    def forward() -> Any:
        outputs = function(*leaves)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    if mode == "backward":
        return Side(name, lambda outputs: torch.autograd.grad(outputs, leaves, cotangents), forward)
    return Side(name, lambda _: torch.autograd.grad(forward(), leaves, cotangents))


def copy_side(bytes_moved: int, dtype: torch.dtype, device: str) -> Side:
    """``clone`` of half as many bytes: it reads and writes, and allocates its output as the operators do."""
    source = torch.zeros(max(bytes_moved // (2 * dtype.itemsize), 1), dtype=dtype, device=device).fill_(0.5)
    return Side("copy", lambda _: source.clone())


def functions(bench: OpBench, case: Case, names: Sequence[str], compiled: str | None) -> dict[str, Callable[..., Any]]:
    """What each side but the copy calls with the operator's tensors."""

    def ours(name: str) -> Callable[..., Any]:
        options = bench.options(case)
        return lambda *tensors: bench.spec.function(*tensors, backend=name, **options)

    out: dict[str, Callable[..., Any]] = {"eager": bench.peer(case)}
    if compiled is not None:
        for name, formula in {compiled: bench.peer(case), **bench.peers(case)}.items():
            # fullgraph: an error, not a silent return to eager code. One shape, one compilation.
            out[name] = torch.compile(formula, fullgraph=True, dynamic=False, mode=COMPILE_MODES[compiled])
    return out | {name: side(case) for name, side in bench.sides.items()} | {name: ours(name) for name in names}


def case_row(bench: OpBench, case: Case, mode: str) -> Row:
    """The columns that name a case."""
    dtype = str(case.dtype).removeprefix("torch.")
    return {"op": bench.name, "mode": mode, "dtype": dtype, "layout": case.layout, "shape": case.shape}


def measure_case(
    bench: OpBench,
    case: Case,
    modes: Sequence[str],
    names: Sequence[str],
    compiled: str | None,
    clock: Clock,
    effort: Effort,
    where: Row,
) -> Iterator[list[Row]]:
    """One list of rows for each mode: all sides, timed in turns.

    Raises:
        WrongResult: a side computes something else.
    """
    torch._dynamo.reset()  # forgets the graphs of other shapes
    tensors: Tensors = make_inputs(bench, case)
    calls = functions(bench, case, names, compiled)
    for name, function in calls.items():
        if name != "eager":  # judged in float64 by check_published
            check_case(bench, case, name, function, tensors)
    for mode in modes:
        moved = bench.bytes_moved(case, mode)
        sides = [copy_side(moved, case.dtype, case.device)]
        for name, function in calls.items():
            inputs = tensors.published if name in ("eager", *COMPILE_MODES) else tensors.ours
            sides.append(make_side(name, function, inputs, tensors.cotangents, mode))
        with torch.inference_mode(mode == "forward"):
            timings = time_sides(sides, clock, effort)
        yield [make_row(case_row(bench, case, mode), side.name, timings, moved, where) for side in sides]


def run_ops(
    names: Sequence[str],
    cases: Sequence[Case],
    modes: Sequence[str],
    backend_names: Sequence[str],
    compiled: str | None,
    clock: Clock,
    effort: Effort,
    where: Row,
    samples: int | None = None,
) -> Iterator[list[Row]]:
    """Gate, then all operators, cases and modes.

    Args:
        samples: small samples of each operator in the gate, at most.
    Raises:
        WrongResult: a side computes something else; nothing of it was timed.
    """
    dtypes, device = tuple(dict.fromkeys(case.dtype for case in cases)), cases[0].device
    for name in names:
        bench = BENCHES[name]
        check_published(bench)
        for backend in backend_names:
            check_backend(bench, backend, dtypes, device, samples)
    for name in names:
        for case in (c for c in cases if c.maps in BENCHES[name].kinds):
            yield from measure_case(BENCHES[name], case, modes, backend_names, compiled, clock, effort, where)
