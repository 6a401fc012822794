# SPDX-License-Identifier: Apache-2.0
"""non_background_pool: schema, fake, autograd, public function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import like, memory_format
from ..reference.non_background_pool import (
    non_background_pool_backward_reference,
    non_background_pool_double_backward_reference,
    non_background_pool_reference,
)
from ._common import Definition, autocast_inputs, check_same, check_tensor, dispatch, register_family
from ._indexed import check_grad, check_image

_OP = "non_background_pool"
MAX_WINDOWS = 16  # kMaxWindows of csrc/common/non_background_pool.h


def _check_sizes(op: str, kernel_size: Any) -> None:
    sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,)
    for k in sizes:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1 or k % 2 == 0:
            raise ValueError(f"{op}: kernel_size must be an odd number or a tuple of them, got {kernel_size!r}")
    if not sizes:
        raise ValueError(f"{op}: kernel_size must be an odd number or a tuple of them, got {kernel_size!r}")
    if len(sizes) > MAX_WINDOWS:
        raise ValueError(f"{op}: kernel_size must have at most {MAX_WINDOWS} sizes, got {len(sizes)}")


def _check(op: str, x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> None:
    _check_sizes(op, kernel_size)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps must be a finite number above 0, got {eps!r}")
    if not isinstance(count_include_pad, bool):
        raise ValueError(f"{op}: count_include_pad must be True or False, got {count_include_pad!r}")
    check_image(op, "x", x)
    if x.shape[1] % len(kernel_size) != 0:
        raise ValueError(
            f"{op}: x must have equal chunks of channels for {len(kernel_size)} windows, got {x.shape[1]} channels"
        )
    check_tensor(op, "mask", mask, ("N", "1", "H", "W"))
    want = (x.shape[0], 1, x.shape[2], x.shape[3])
    if tuple(mask.shape) != want:
        raise ValueError(f"{op}: mask must be {want}, got {tuple(mask.shape)}")
    check_same(op, "mask", mask, x)


def _check_forward(x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> None:
    _check(_OP, x, mask, kernel_size, eps, count_include_pad)


def _check_backward(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    eps: float,
    count_include_pad: bool,
    need_x: bool,
    need_mask: bool,
) -> None:
    op = "non_background_pool_backward"
    _check(op, x, mask, kernel_size, eps, count_include_pad)
    check_grad(op, "grad", grad, x, tuple(x.shape))


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _fake(x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> Tensor:
    return _empty_like(x)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    eps: float,
    count_include_pad: bool,
    need_x: bool,
    need_mask: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_like(x) if need_x else x.new_empty(0), torch.empty_like(mask) if need_mask else x.new_empty(0)


def _reference(x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> Tensor:
    return like(non_background_pool_reference(x, mask, kernel_size, eps, count_include_pad), x)


def _reference_backward(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    eps: float,
    count_include_pad: bool,
    need_x: bool,
    need_mask: bool,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_mask = non_background_pool_backward_reference(grad, x, mask, kernel_size, eps, count_include_pad)
    most = torch.finfo(mask.dtype).max
    return (
        like(grad_x, x) if need_x else x.new_empty(0),
        torch.empty_like(mask).copy_(grad_mask.clamp(-most, most)) if need_mask else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mask, ctx.kernel_size, ctx.eps, ctx.count_include_pad = inputs
    ctx.save_for_backward(x, mask)


def _backward(call: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, mask = ctx.saved_tensors
    need_x, need_mask = ctx.needs_input_grad[:2]
    options = (ctx.kernel_size, ctx.eps, ctx.count_include_pad)
    grad_x, grad_mask = call("non_background_pool_backward", grad, x, mask, *options, need_x, need_mask)
    return grad_x if need_x else None, grad_mask if need_mask else None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, x, mask, ctx.kernel_size, ctx.eps, ctx.count_include_pad, ctx.need_x, ctx.need_mask = inputs
    ctx.save_for_backward(grad, x, mask)


def _double_backward(call: Any, ctx: Any, grad_grad_x: Tensor, grad_grad_mask: Tensor) -> tuple[Any, ...]:
    grad, x, mask = ctx.saved_tensors
    grads = non_background_pool_double_backward_reference(
        grad_grad_x if ctx.need_x else torch.zeros_like(x),
        grad_grad_mask if ctx.need_mask else torch.zeros_like(mask),
        grad,
        x,
        mask,
        ctx.kernel_size,
        ctx.eps,
        ctx.count_include_pad,
    )
    return *(g.to(t.dtype) for g, t in zip(grads, (grad, x, mask), strict=True)), None, None, None, None, None


register_family(
    _OP,
    Definition(
        "non_background_pool",
        "(Tensor x, Tensor mask, int[] kernel_size, float eps, bool count_include_pad) -> Tensor",
        _check_forward,
        _fake,
        _reference,
        _setup_context,
        _backward,
    ),
    Definition(
        "non_background_pool_backward",
        "(Tensor grad, Tensor x, Tensor mask, int[] kernel_size, float eps, bool count_include_pad, bool need_x,"
        " bool need_mask) -> (Tensor, Tensor)",
        _check_backward,
        _fake_backward,
        _reference_backward,
        _setup_context_backward,
        _double_backward,
    ),
)


def non_background_pool(
    x: Tensor,
    mask: Tensor,
    *,
    kernel_size: int | Sequence[int],
    eps: float = 1e-6,
    count_include_pad: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Mean of ``x`` over square windows at stride 1, weighted by a soft mask: non-background pooling.

    y[n,c] = Pool_k(m[n] · x[n,c]) / (Pool_k(m[n]) + eps),  Pool_k: k x k average pooling, stride 1, the size kept. A window
    that reaches over the border averages the pixels inside the map; with ``count_include_pad`` both averages divide by k·k.
    (The count is in numerator and denominator alike and matters only beside ``eps``.) A window that holds no mask gives 0.
    Cost per pixel does not depend on k. Source: [TMFNet] Eq. 3.

    Args:
        x: features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        mask: weights, at least 0, (N, 1, H, W); dtype and device of ``x``; any strides.
        kernel_size: side k of the window in pixels, odd (an even window has no centre, and would not keep the size); may exceed
            the map. A tuple of up to 16 sizes gives each of as many equal chunks of the channels its own window, in one call:
            ``(31, 17, 11, 5)`` on the concatenated branches of TMP.
        eps: added to the mean of the mask, above 0.
        count_include_pad: whether an average counts the pixels of the window outside the map.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, H, W), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, mask; twice differentiable. Where a window holds no mask, the gradient of the mask is of the order of 1 / eps;
        in float16 it is clamped to the largest finite number. Under autocast, inputs are cast to its dtype.
    Memory: saves x and mask. Deterministic: yes (no atomics). Sums are formed without subtraction in float32 (float64 for
        float64): a window's value depends on nothing outside it, and errors do not grow with the map.
    """
    x, mask = autocast_inputs(x, mask) if isinstance(x, Tensor) and isinstance(mask, Tensor) else (x, mask)
    _check_sizes(_OP, kernel_size)
    sizes = [kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
    _check(_OP, x, mask, sizes, eps, count_include_pad)
    return dispatch(_OP, backend, (x, mask))(x, mask, sizes, eps, count_include_pad)
