# SPDX-License-Identifier: Apache-2.0
"""The sum over a window with kernels of each position's own: the formulas under all dynamic-kernel operators.

A cell (i, j) is one position of the kernels' grid. It has T = k k taps and S = scale^2 sub-positions (1 except in upsampling),
and its window starts at pixel (stride i - (k-1)//2, stride j - (k-1)//2) of x. With z the kernels normalised over the taps
(pyindexnet/reference/normalization.py) and u the pixels under the window, 0 outside the image (such taps are dropped, z is not
normalised again),

    y[c, s] = sum_t z[g(c), t, s] u[c, t],

s a sub-position of the cell in the output, in the pixel-shuffle order. Sub-positions that an odd output size cuts off are
absent. Backward, with d[g, t, s] = sum over the channels of g of grad[c, s] u[c, t]:

    grad_u[c, t] = sum_s z[g, t, s] grad[c, s] (grad_x gathers it),   grad_logits = J^T d.

The backward's own derivative, for cotangents X of grad_x, with U the pixels of X under the window, and A of grad_logits:

    dS/dgrad[c, s] = sum_t z U + (J A) u,   dS/du[c, t] = sum_s (J A) grad,   dS/dlogits = J^T (sum_c U grad) + d/da <J A, d>.

Arithmetic is float32, float64 for float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import normalization as nz
from .index_cell import accumulate_dtype

#: Which channels of x form a group, see :class:`Window`.
GROUP_ORDERS = ("blocked", "interleaved")
#: Order of the channels of the logits: (group, tap), or (tap, group) as the released A2U module writes them.
GROUP_LAYOUTS = ("group_major", "position_major")
#: Where the sub-positions of upsampling logits lie: in the channels, or already shuffled into the plane.
LAYOUTS = ("shuffled", "dense")


@dataclass(frozen=True)
class Window:
    """Geometry of one call.

    Attributes:
        kernel_size: k.
        groups: sets of channels with a kernel of their own.
        normalization: over the k * k taps.
        height, width: size of the output.
        stride: pixels of x between neighbouring cells.
        scale: sub-positions of a cell along each axis of the output.
        dense: logits lie as (N, groups * k * k, height, width), else as (N, groups * k * k * scale^2, h, w).
        interleaved: channel c belongs to group c % groups, else to c // (C / groups).
    """

    kernel_size: int
    groups: int
    normalization: str
    height: int
    width: int
    stride: int = 1
    scale: int = 1
    dense: bool = False
    interleaved: bool = False

    @property
    def taps(self) -> int:
        return self.kernel_size * self.kernel_size

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the kernels' grid."""
        return -(-self.height // self.scale), -(-self.width // self.scale)


def take(x: Tensor, k: int, stride: int, h: int, w: int) -> Tensor:
    """The pixels under every window: (N, C, H, W) -> (N, C, k * k, h, w), 0 outside the image."""
    n, c, height, width = x.shape
    before = (k - 1) // 2
    x = F.pad(x, (before, stride * (w - 1) + k - before - width, before, stride * (h - 1) + k - before - height))
    return x.unfold(2, k, stride).unfold(3, k, stride).permute(0, 1, 4, 5, 2, 3).reshape(n, c, k * k, h, w)


def put(u: Tensor, k: int, stride: int, height: int, width: int) -> Tensor:
    """Adjoint of :func:`take`: every pixel of (N, C, height, width) is the sum of the taps that read it."""
    n, c, _, h, w = u.shape
    before, full_h, full_w = (k - 1) // 2, stride * (h - 1) + k, stride * (w - 1) + k
    if n == 0:
        return u.new_zeros(n, c, height, width) + u.sum()
    x = F.fold(u.reshape(n, c * k * k, h * w), (full_h, full_w), k, stride=stride)
    return F.pad(x, (-before, before + width - full_w, -before, before + height - full_h))


def _by_group(x: Tensor, window: Window) -> Tensor:
    """(N, C, ...) -> (N, groups, C / groups, ...)."""
    if window.interleaved:
        return x.unflatten(1, (-1, window.groups)).transpose(1, 2)
    return x.unflatten(1, (window.groups, -1))


def _from_groups(x: Tensor, window: Window) -> Tensor:
    return (x.transpose(1, 2) if window.interleaved else x).flatten(1, 2)


def _inside(window: Window, device: torch.device) -> Tensor:
    """(S, h, w): which sub-positions lie in the output."""
    return nz.present((window.height, window.width), window.scale, device)


def _kernels(logits: Tensor, window: Window) -> Tensor:
    """Logits by (N, groups, T, S, h, w), 0 at absent sub-positions."""
    if window.dense:
        logits = nz.cells(logits, window.scale).flatten(1, 2)
    a = logits.unflatten(1, (window.groups, window.taps, window.scale * window.scale))
    return a.masked_fill(~_inside(window, a.device), 0)


def _from_kernels(a: Tensor, window: Window) -> Tensor:
    """Inverse of :func:`_kernels`."""
    a = a.masked_fill(~_inside(window, a.device), 0).flatten(1, 2)
    if window.dense:
        return nz.uncells(a, window.scale, window.height, window.width)
    return a.flatten(1, 2)


def _pixels(x: Tensor, window: Window) -> Tensor:
    """(N, groups, M, T, h, w)."""
    return _by_group(take(x, window.kernel_size, window.stride, *window.cells), window)


def _from_pixels(u: Tensor, window: Window, x: Tensor) -> Tensor:
    return put(_from_groups(u, window), window.kernel_size, window.stride, *x.shape[2:])


def _cells(y: Tensor, window: Window) -> Tensor:
    """(N, groups, M, S, h, w)."""
    return _by_group(nz.cells(y, window.scale), window)


def _from_cells(u: Tensor, window: Window) -> Tensor:
    return nz.uncells(_from_groups(u, window), window.scale, window.height, window.width)


def einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """``torch.einsum`` in the dtype of its operands, under autocast too."""
    with torch.autocast(a.device.type, enabled=False):  # else it would run in a half type
        return torch.einsum(equation, a, b)


def _weigh(u: Tensor, z: Tensor) -> Tensor:
    """Sum over the taps: (N, G, M, T, h, w), (N, G, T, S, h, w) -> (N, G, M, S, h, w)."""
    return einsum("ngmtij,ngtsij->ngmsij", u, z)


def _spread(grad: Tensor, z: Tensor) -> Tensor:
    """Sum over the sub-positions: (N, G, M, S, h, w), (N, G, T, S, h, w) -> (N, G, M, T, h, w)."""
    return einsum("ngmsij,ngtsij->ngmtij", grad, z)


def _pair(grad: Tensor, u: Tensor) -> Tensor:
    """Sum over the channels of a group: (N, G, M, S, h, w), (N, G, M, T, h, w) -> (N, G, T, S, h, w)."""
    return einsum("ngmsij,ngmtij->ngtsij", grad, u)


def _everywhere(a: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=a.device)  # every tap is present, inside the image or not


def window_reference(x: Tensor, logits: Tensor, window: Window) -> Tensor:
    """The operator; float32, float64 for float64."""
    dtype = accumulate_dtype(x)
    a = _kernels(logits.to(dtype), window)
    z = nz.normalize(a, window.normalization, _everywhere(a))
    return _from_cells(_weigh(_pixels(x.to(dtype), window), z), window)


def window_backward_reference(grad: Tensor, x: Tensor, logits: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Gradients of x and logits."""
    dtype = accumulate_dtype(x)
    a, g, u = _kernels(logits.to(dtype), window), _cells(grad.to(dtype), window), _pixels(x.to(dtype), window)
    z = nz.normalize(a, window.normalization, _everywhere(a))
    grad_logits = nz.normalize_vjp(a, _pair(g, u), window.normalization, _everywhere(a))
    return _from_pixels(_spread(g, z), window, x), _from_kernels(grad_logits, window)


def window_double_backward_reference(
    grad_grad_x: Tensor, grad_grad_logits: Tensor, grad: Tensor, x: Tensor, logits: Tensor, window: Window
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, x and logits; differentiable again by autograd."""
    dtype, how = accumulate_dtype(x), window.normalization
    a, g, u = _kernels(logits.to(dtype), window), _cells(grad.to(dtype), window), _pixels(x.to(dtype), window)
    everywhere = _everywhere(a)
    v, other = _kernels(grad_grad_logits.to(dtype), window), _pixels(grad_grad_x.to(dtype), window)
    z, jv = nz.normalize(a, how, everywhere), nz.normalize_jvp(a, v, how, everywhere)
    d_grad = _weigh(other, z) + _weigh(u, jv)
    d_logits = nz.normalize_vjp(a, _pair(g, other), how, everywhere)
    d_logits = d_logits + nz.normalize_second(a, v, _pair(g, u), how, everywhere)
    return _from_cells(d_grad, window), _from_pixels(_spread(g, jv), window, x), _from_kernels(d_logits, window)
