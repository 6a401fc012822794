# SPDX-License-Identifier: Apache-2.0
"""What the dynamic-kernel operators share: argument checks and registration. They differ in options and in the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def register_window_op(op: str, kernels: str, options: str, window: Checks) -> None:
    """Register a dynamic-kernel operator with its backward.

    Args:
        op: its name.
        kernels: name of its second tensor.
        options: the rest of its schema.
        window: checks the dispatcher op's arguments, ``window(op, x, kernels, *options)``, and returns their geometry.
    """
    backward = f"{op}_backward"

    def check_forward(*args: Any) -> None:
        window(op, *args)

    def check_backward(grad: Tensor, *args: Any) -> None:
        x, geometry = args[0], window(backward, *args[:-2])
        check_tensor(backward, "grad", grad, ("N", "C", "H", "W"))
        want = (x.shape[0], x.shape[1], geometry.height, geometry.width)
        if tuple(grad.shape) != want:
            raise ValueError(f"{backward}: grad must be {want}, got {tuple(grad.shape)}")
        check_same(backward, "grad", grad, x)

    def fake(x: Tensor, logits: Tensor, *args: Any) -> Tensor:
        geometry = window(op, x, logits, *args)
        size = (x.shape[0], x.shape[1], geometry.height, geometry.width)
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))

    def fake_backward(grad: Tensor, x: Tensor, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        *_, need_x, need_logits = args
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
        return grad_x if need_x else x.new_empty(0), torch.empty_like(logits) if need_logits else x.new_empty(0)

    def reference(x: Tensor, logits: Tensor, *args: Any) -> Tensor:
        return like(window_reference(x, logits, window(op, x, logits, *args)), x)

    def reference_backward(grad: Tensor, x: Tensor, logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        *options, need_x, need_logits = args
        grad_x, grad_logits = window_backward_reference(grad, x, logits, window(backward, x, logits, *options))
        return (
            like(grad_x, x) if need_x else x.new_empty(0),
            like_logits(grad_logits, logits) if need_logits else x.new_empty(0),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, logits, *ctx.options = inputs
        ctx.save_for_backward(x, logits)

    def run_backward(call: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, logits = ctx.saved_tensors
        need_x, need_logits = ctx.needs_input_grad[:2]
        grad_x, grad_logits = call(backward, grad, x, logits, *ctx.options, need_x, need_logits)
        return grad_x if need_x else None, grad_logits if need_logits else None, *(None for _ in ctx.options)

    def setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        grad, x, logits, *ctx.options, ctx.need_x, ctx.need_logits = inputs
        ctx.save_for_backward(grad, x, logits)

    def double_backward(call: Any, ctx: Any, grad_grad_x: Tensor, grad_grad_logits: Tensor) -> tuple[Any, ...]:
        grad, x, logits = ctx.saved_tensors
        grads = window_double_backward_reference(
            grad_grad_x if ctx.need_x else torch.zeros_like(x),
            grad_grad_logits if ctx.need_logits else torch.zeros_like(logits),
            grad,
            x,
            logits,
            window(backward, x, logits, *ctx.options),
        )
        cast = (g.to(t.dtype) for g, t in zip(grads, (grad, x, logits), strict=True))
        return *cast, *(None for _ in ctx.options), None, None

    register_family(
        op,
        Definition(
            op,
            f"(Tensor x, Tensor {kernels}, {options}) -> Tensor",
            check_forward,
            fake,
            reference,
            setup_context,
            run_backward,
        ),
        Definition(
            backward,
            f"(Tensor grad, Tensor x, Tensor {kernels}, {options}, bool need_x, bool need_{kernels}) -> (Tensor, Tensor)",
            check_backward,
            fake_backward,
            reference_backward,
            setup_context_backward,
            double_backward,
        ),
    )
