# SPDX-License-Identifier: Apache-2.0
"""Non-background pooling, [TMFNet] Eq. 3: the mean of x over a window, weighted by a soft mask.

Pool_k is average pooling at stride 1, k odd, zero outside the map. With S the sum over a window (symmetric: its own adjoint), n
the number of pixels that an average divides by (those inside the map, or k k with ``count_include_pad``), m the mask, e = eps,

    y = Pool(m x) / (Pool(m) + e) = v S(m x),    v = 1 / (S(m) + e n).

So n matters only beside e. Where a window holds no mask, S(m x) is an exact 0 and so is y. Backward, for a cotangent g of y:

    u = S(v g),    grad_x = m u,    grad_m = sum_c x u - S(v sum_c g y).

Its own derivative, for cotangents X of grad_x and M of grad_m, follows from <X, grad_x> + <M, grad_m> = <v g, S(a) - b y> with
a = m X + M x and b = S(M); with w = S(b v v g),

    grad_g = v (S(a) - b y),    grad_x = M u - m w,    grad_m = sum_c (X u - x w) - S(v v sum_c g (S(a) - 2 b y)).

Several window sizes: each takes its own equal chunk of the channels; grad_m is the sum over the chunks. S is a sum of columns,
then of rows, without subtraction: a window's value depends on nothing outside it. Arithmetic is float32, float64 for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .index_cell import accumulate_dtype


def window_sum(t: Tensor, k: int) -> Tensor:
    """S(t): sums over k x k windows at stride 1, zero outside."""
    columns = F.avg_pool2d(t, (k, 1), 1, (k // 2, 0), divisor_override=1)
    return F.avg_pool2d(columns, (1, k), 1, (0, k // 2), divisor_override=1)


def inverse_denominator(mask: Tensor, k: int, eps: float, count_include_pad: bool) -> Tensor:
    """v = 1 / (S(m) + eps n), (N, 1, H, W)."""
    n = k * k if count_include_pad else window_sum(torch.ones_like(mask[:1]), k)
    return 1 / (window_sum(mask, k) + eps * n)


def _chunks(
    f: Callable[..., tuple[Tensor, ...]], kernel_size: Sequence[int], *tensors: Tensor
) -> tuple[tuple[Tensor, ...], ...]:
    """The outputs of ``f(*chunks, k)`` for each window size, one tuple for each output."""
    parts = zip(*(t.chunk(len(kernel_size), 1) for t in tensors), kernel_size, strict=True)
    return tuple(zip(*(f(*part) for part in parts), strict=True))


def non_background_pool_reference(
    x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool
) -> Tensor:
    dtype = accumulate_dtype(x)
    m = mask.to(dtype)

    def chunk(x: Tensor, k: int) -> tuple[Tensor]:
        return (window_sum(m * x, k) * inverse_denominator(m, k, eps, count_include_pad),)

    (y,) = _chunks(chunk, kernel_size, x.to(dtype))
    return torch.cat(y, 1)


def non_background_pool_backward_reference(
    grad: Tensor, x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(x)
    m = mask.to(dtype)

    def chunk(g: Tensor, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        v = inverse_denominator(m, k, eps, count_include_pad)
        u, y = window_sum(v * g, k), v * window_sum(m * x, k)
        return m * u, (x * u).sum(1, keepdim=True) - window_sum(v * (g * y).sum(1, keepdim=True), k)

    grad_x, grad_m = _chunks(chunk, kernel_size, grad.to(dtype), x.to(dtype))
    return torch.cat(grad_x, 1), torch.stack(grad_m).sum(0)


def non_background_pool_double_backward_reference(
    grad_grad_x: Tensor,
    grad_grad_mask: Tensor,
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    eps: float,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, x and mask; differentiable again by autograd."""
    dtype = accumulate_dtype(x)
    m, cotangent_m = mask.to(dtype), grad_grad_mask.to(dtype)

    def chunk(cotangent_x: Tensor, g: Tensor, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        v = inverse_denominator(m, k, eps, count_include_pad)
        u, y = window_sum(v * g, k), v * window_sum(m * x, k)
        a, b = window_sum(m * cotangent_x + cotangent_m * x, k), window_sum(cotangent_m, k)
        w = window_sum(b * v * v * g, k)
        through_v = window_sum(v * v * (g * (a - 2 * b * y)).sum(1, keepdim=True), k)
        return v * (a - b * y), cotangent_m * u - m * w, (cotangent_x * u - x * w).sum(1, keepdim=True) - through_v

    grad_g, grad_x, grad_m = _chunks(chunk, kernel_size, grad_grad_x.to(dtype), grad.to(dtype), x.to(dtype))
    return torch.cat(grad_g, 1), torch.cat(grad_x, 1), torch.stack(grad_m).sum(0)
