# SPDX-License-Identifier: Apache-2.0
"""What the dynamic-kernel operators share: argument checks and registration. They differ in options and in the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import accumulate_dtype, like, like_logits, memory_format
from ..reference.normalization import normalize
from ..reference.window import (
    Window,
    window_backward_reference,
    window_double_backward_reference,
    window_reference,
)
from ._common import Definition, check_same, check_tensor, register_family

Checks = Callable[..., Window]


def check_int(op: str, name: str, value: Any, low: int, high: int) -> None:
    """An int within low..high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{op}: {name} must be an integer within {low}..{high}, got {value!r}")


def within(op: str, name: str, size: tuple[Any, ...], bounds: Sequence[tuple[Any, Any]]) -> None:
    """A size (height, width) within bounds."""
    if any(not low <= n <= high for n, (low, high) in zip(size, bounds, strict=True)):
        text = ", ".join(f"{low}..{high}" for low, high in bounds)
        raise ValueError(f"{op}: {name} must be within ({text}), got {tuple(size)}")


def check_image(op: str, name: str, x: Tensor) -> None:
    check_tensor(op, name, x, ("N", "C", "H", "W"))
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{op}: {name} must have C, H and W of at least 1, got {tuple(x.shape)}")


def check_groups(op: str, x: Tensor, groups: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{op}: groups must divide the {x.shape[1]} channels of x, got {groups!r}")


def check_kernels(op: str, name: str, x: Tensor, kernels: Tensor, channels: int, h: int, w: int) -> None:
    """Kernels against x and the size of their grid."""
    check_tensor(op, name, kernels, ("N", "channels", "h", "w"))
    want = (x.shape[0], channels, h, w)
    if tuple(kernels.shape) != want:
        raise ValueError(f"{op}: {name} must be {want}, got {tuple(kernels.shape)}")
    check_same(op, name, kernels, x)


def group_major(logits: Tensor, groups: int, kernel_size: int, normalization: str) -> tuple[Tensor, str]:
    """Logits in the channel order (tap, group), normalised over the taps, for an operator that reads (group, tap).

    Returns logits for that operator and their normalisation: with one group the orders are the same; with several, the groups
    whose sums are 1 are not those that the operator applies.
    """
    if groups == 1 or normalization == "none":
        return logits, normalization
    n, _, h, w = logits.shape
    a = logits.reshape(n, kernel_size * kernel_size, -1, h, w).transpose(1, 2)
    everywhere = torch.ones((), dtype=torch.bool, device=logits.device)
    z = normalize(a.to(accumulate_dtype(a)), normalization, everywhere).to(logits.dtype)
    return z.transpose(1, 2).reshape(logits.shape), "none"


@dataclass(frozen=True)
class Source:
    """Where an operator's logits come from: a function, linear in each, of its tensors beside x.

    Attributes:
        logits: ``logits(*tensors)``.
        vjp: the tensors' gradients, ``vjp(grad_logits, *tensors)``.
        jvp: the logits' derivative along directions of the tensors, ``jvp(directions, *tensors)``.
        second: the tensors' gradients of <grad_logits, jvp(directions, *tensors)>, ``second(grad_logits, directions,
            *tensors)``; None where the logits are linear in all tensors together, so that there is none.
    """

    logits: Callable[..., Tensor]
    vjp: Callable[..., tuple[Tensor, ...]]
    jvp: Callable[..., Tensor]
    second: Callable[..., tuple[Tensor, ...]] | None = None


#: The logits are an argument of the operator.
GIVEN = Source(lambda logits: logits, lambda grad_logits, _: (grad_logits,), lambda directions, _: directions[0])


def register_window_op(op: str, names: Sequence[str], options: str, window: Checks, source: Source = GIVEN) -> None:
    """Register a dynamic-kernel operator with its backward.

    Args:
        op: its name.
        names: of its tensors beside x.
        options: the rest of its schema.
        window: checks the dispatcher op's arguments, ``window(op, x, *tensors, *options)``, and returns their geometry.
        source: the logits as a function of the tensors.
    """
    backward, count = f"{op}_backward", len(names)

    def check_forward(*args: Any) -> None:
        window(op, *args)

    def check_backward(grad: Tensor, x: Tensor, *args: Any) -> None:
        geometry = window(backward, x, *args[: -count - 1])
        check_tensor(backward, "grad", grad, ("N", "C", "H", "W"))
        want = (x.shape[0], x.shape[1], geometry.height, geometry.width)
        if tuple(grad.shape) != want:
            raise ValueError(f"{backward}: grad must be {want}, got {tuple(grad.shape)}")
        check_same(backward, "grad", grad, x)

    def fake(x: Tensor, *args: Any) -> Tensor:
        geometry = window(op, x, *args)
        size = (x.shape[0], x.shape[1], geometry.height, geometry.width)
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))

    def fake_backward(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        need_x, *need = args[-count - 1 :]
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
        grads = (torch.empty_like(t) if n else x.new_empty(0) for t, n in zip(args[:count], need, strict=True))
        return grad_x if need_x else x.new_empty(0), *grads

    def reference(x: Tensor, *args: Any) -> Tensor:
        return like(window_reference(x, source.logits(*args[:count]), window(op, x, *args)), x)

    def reference_backward(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        tensors, (need_x, *need) = args[:count], args[-count - 1 :]
        geometry = window(backward, x, *args[: -count - 1])
        grad_x, grad_logits = window_backward_reference(grad, x, source.logits(*tensors), geometry)
        grads = source.vjp(grad_logits, *tensors)
        return (
            like(grad_x, x) if need_x else x.new_empty(0),
            *(like_logits(g, t) if n else x.new_empty(0) for g, t, n in zip(grads, tensors, need, strict=True)),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[1 + count :]
        ctx.save_for_backward(*inputs[: 1 + count])

    def run_backward(call: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        need = ctx.needs_input_grad[: 1 + count]
        grads = call(backward, grad, *ctx.saved_tensors, *ctx.options, *need)
        return *(g if n else None for g, n in zip(grads, need, strict=True)), *(None for _ in ctx.options)

    def setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.need = inputs[2 + count : -count - 1], inputs[-count - 1 :]
        ctx.save_for_backward(*inputs[: 2 + count])

    def double_backward(call: Any, ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        grad, x, *tensors = ctx.saved_tensors
        geometry, logits = window(backward, x, *tensors, *ctx.options), source.logits(*tensors)
        grad_grad_x, *directions = (
            c if n else torch.zeros_like(t) for c, n, t in zip(cotangents, ctx.need, (x, *tensors), strict=True)
        )
        along = source.jvp(directions, *tensors)
        d_grad, d_x, d_logits = window_double_backward_reference(grad_grad_x, along, grad, x, logits, geometry)
        d_tensors = source.vjp(d_logits, *tensors)
        if source.second is not None:
            _, grad_logits = window_backward_reference(grad, x, logits, geometry)
            d_tensors = tuple(map(torch.add, d_tensors, source.second(grad_logits, directions, *tensors)))
        cast = (g.to(t.dtype) for g, t in zip((d_grad, d_x, *d_tensors), ctx.saved_tensors, strict=True))
        return *cast, *(None for _ in ctx.options), *(None for _ in ctx.need)

    arguments = ", ".join(f"Tensor {name}" for name in ("x", *names))
    needs = ", ".join(f"bool need_{name}" for name in ("x", *names))
    register_family(
        op,
        Definition(
            op,
            f"({arguments}, {options}) -> Tensor",
            check_forward,
            fake,
            reference,
            setup_context,
            run_backward,
        ),
        Definition(
            backward,
            f"(Tensor grad, {arguments}, {options}, {needs}) -> ({', '.join(['Tensor'] * (1 + count))})",
            check_backward,
            fake_backward,
            reference_backward,
            setup_context_backward,
            double_backward,
        ),
    )
