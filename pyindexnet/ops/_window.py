# SPDX-License-Identifier: Apache-2.0
"""What the dynamic-kernel operators share: argument checks and registration. They differ in options and in the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import accumulate_dtype
from ..reference.normalization import normalize
from ..reference.window import (
    Window,
    window_backward_reference,
    window_double_backward_reference,
    window_reference,
)
from ._common import check_same, check_tensor
from ._register import Sizes, register_operator

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


def check_groups(op: str, x: Tensor, groups: int, name: str = "groups", of: str = "x") -> None:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{op}: {name} must divide the {x.shape[1]} channels of {of}, got {groups!r}")


def check_kernels(op: str, name: str, x: Tensor, kernels: Tensor, channels: int, h: int, w: int, x_name: str = "x") -> None:
    """Kernels against x and the size of their grid."""
    check_tensor(op, name, kernels, ("N", "channels", "h", "w"))
    want = (x.shape[0], channels, h, w)
    if tuple(kernels.shape) != want:
        raise ValueError(f"{op}: {name} must be {want}, got {tuple(kernels.shape)}")
    check_same(op, name, kernels, x, x_name)


def group_major(logits: Tensor, groups: int, kernel_size: int, normalization: str) -> tuple[Tensor, str]:
    """Logits in the channel order (tap, group), normalised over the taps, for an operator that reads (group, tap).

    Returns logits for that operator and their normalisation: with one group the orders are the same; with several, the groups
    whose sums are 1 are not those that the operator applies.
    """
    if groups == 1 or normalization == "none":
        return logits, normalization
    n, channels, h, w = logits.shape
    taps = kernel_size * kernel_size
    a = logits.reshape(n, taps, channels // taps, h, w).transpose(1, 2)  # -1 would be ambiguous for n = 0
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
    count = len(names)

    def sizes(name: str, x: Tensor, *args: Any) -> Sizes:
        geometry = window(name, x, *args)
        return ((x.shape[0], x.shape[1], geometry.height, geometry.width),)

    def reference(x: Tensor, *args: Any) -> Tensor:
        return window_reference(x, source.logits(*args[:count]), window(op, x, *args))

    def backward_reference(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        tensors = args[:count]
        grad_x, grad_logits = window_backward_reference(grad, x, source.logits(*tensors), window(op, x, *args))
        return grad_x, *source.vjp(grad_logits, *tensors)

    def double_backward_reference(grad_grad_x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        directions, (grad, x), rest = args[:count], args[count : count + 2], args[count + 2 :]
        tensors, geometry = rest[:count], window(op, x, *rest)
        logits, along = source.logits(*tensors), source.jvp(directions, *tensors)
        d_grad, d_x, d_logits = window_double_backward_reference(grad_grad_x, along, grad, x, logits, geometry)
        d_tensors = source.vjp(d_logits, *tensors)
        if source.second is not None:
            _, grad_logits = window_backward_reference(grad, x, logits, geometry)
            d_tensors = tuple(map(torch.add, d_tensors, source.second(grad_logits, directions, *tensors)))
        return d_grad, d_x, *d_tensors

    register_operator(
        op,
        tensors=("x", *names),
        options=options,
        sizes=sizes,
        reference=reference,
        backward_reference=backward_reference,
        double_backward_reference=double_backward_reference,
    )
