# SPDX-License-Identifier: Apache-2.0
"""The tolerance rule: an operator against the float64 reference, judged by the reference in the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .specs import OpSpec, Sample
from .tensors import make_tensors


def error(value: Tensor, gold: Tensor) -> float:
    """Largest absolute difference; infinite where a value is not finite or a shape differs."""
    if value.shape != gold.shape:
        return float("inf")
    if value.numel() == 0:
        return 0.0
    difference = (value.detach().cpu().double() - gold.detach()).abs()
    return float(difference.max()) if bool(difference.isfinite().all()) else float("inf")


def tolerance(gold: Tensor, reference_error: float, terms: int, dtype: torch.dtype) -> float:
    """Twice the error of the reference in the same dtype, plus the rounding floor.

    floor = (eps(dtype) + terms * eps(accumulator)) * max|gold|; the accumulator is float32, float64 for float64.
    """
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    scale = float(gold.abs().max()) if gold.numel() else 0.0
    return 2 * reference_error + (torch.finfo(dtype).eps + terms * torch.finfo(accumulator).eps) * scale


@dataclass(frozen=True)
class Measurement:
    """One tensor of one call: an output (``y``) or a gradient (``grad x``)."""

    tensor: str
    error: float
    reference_error: float
    bound: float
    worst: tuple[int, ...]

    @property
    def ok(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        return (
            f"{self.tensor}: error {self.error:.3e} at {self.worst}, bound {self.bound:.3e}, "
            f"reference in the same dtype {self.reference_error:.3e}"
        )


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _cotangents(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(y.shape, generator=rng, dtype=torch.float64) for y in outputs)


def run(
    call: Callable[..., Any], tensors: tuple[Tensor, ...], cotangents: tuple[Tensor, ...] | None, gradient: bool = True
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs and gradients of ``call(*tensors)``; random cotangents where None, rounded to the outputs' dtype."""
    leaves = tuple(t.detach().requires_grad_(gradient) for t in tensors)
    outputs = _tuple(call(*leaves))
    if not gradient:
        return outputs, ()
    chosen = cotangents if cotangents is not None else _cotangents(outputs)
    used = tuple(c.to(dtype=y.dtype, device=y.device) for c, y in zip(chosen, outputs, strict=True))
    return outputs, torch.autograd.grad(outputs, leaves, used)


def measure(
    spec: OpSpec,
    sample: Sample,
    suffix: str,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    layout: str = "contiguous",
) -> list[Measurement]:
    """Forward and all gradients of the op variant ``spec.name + suffix`` against the float64 reference.

    The gold gradients come from autograd through the plain reference formula, not from its closed-form backward.
    """
    tensors = make_tensors(spec, sample, dtype, device, layout)
    op = getattr(torch.ops.pyindexnet, spec.name + suffix)

    def gold_call(*t: Tensor) -> Any:
        return spec.reference(*spec.arguments(*t, **sample.options))

    exact = tuple(t.detach().cpu().double() for t in tensors)
    shapes = _tuple(gold_call(*exact))
    cotangents = tuple(c.to(dtype).double() for c in _cotangents(shapes))
    gold = run(gold_call, exact, cotangents)
    same = tuple(t.detach().cpu() for t in tensors)
    reference_op = getattr(torch.ops.pyindexnet, f"{spec.name}_reference")
    reference = run(lambda *t: reference_op(*spec.arguments(*t, **sample.options)), same, cotangents)
    value = run(lambda *t: op(*spec.arguments(*t, **sample.options)), tensors, cotangents)

    terms = spec.terms(sample)
    rows = []
    names = [*((n, n) for n in spec.outputs), *((f"grad {n}", n) for n in spec.names(sample))]
    for (label, name), v, g, r in zip(names, sum(value, ()), sum(gold, ()), sum(reference, ()), strict=True):
        reference_error = error(r, g)
        worst: tuple[int, ...] = ()
        if v.shape == g.shape and v.numel():
            flat = int((v.detach().cpu().double() - g).abs().nan_to_num(torch.inf).argmax())
            worst = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), g.shape))
        bound = tolerance(g.detach(), reference_error, terms[name], dtype)
        rows.append(Measurement(label, error(v, g), reference_error, bound, worst))
    return rows
