# SPDX-License-Identifier: Apache-2.0
"""non_background_pool: registration, public function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.non_background_pool import (
    non_background_pool_backward_reference,
    non_background_pool_double_backward_reference,
    non_background_pool_reference,
)
from ._common import autocast_inputs, check_same, check_tensor, dispatch
from ._register import Sizes, check_image, register_operator

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


def _sizes(op: str, x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> Sizes:
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
    return (tuple(x.shape),)


def _backward_reference(grad: Tensor, x: Tensor, mask: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_mask = non_background_pool_backward_reference(grad, x, mask, *options)
    most = torch.finfo(mask.dtype).max
    return grad_x, grad_mask.clamp(-most, most)


register_operator(
    _OP,
    tensors=("x", "mask"),
    options="int[] kernel_size, float eps, bool count_include_pad",
    sizes=_sizes,
    reference=non_background_pool_reference,
    backward_reference=_backward_reference,
    double_backward_reference=non_background_pool_double_backward_reference,
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
    x, mask = autocast_inputs(x, mask)
    _check_sizes(_OP, kernel_size)
    sizes = [kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
    _sizes(_OP, x, mask, sizes, eps, count_include_pad)
    return dispatch(_OP, backend, (x, mask))(x, mask, sizes, eps, count_include_pad)
