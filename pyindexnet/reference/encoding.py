# SPDX-License-Identifier: Apache-2.0
"""The two encodings of a feature map under affinity_map and affinity_moments, [A2U] Eq. 4, and their adjoints.

With P[c, t] the pixel of channel c under tap t of the window of a position (pyindexnet/reference/window.py: it starts at pixel
(stride i - (k-1)//2, stride j - (k-1)//2), 0 outside the image), the encodings of channel c are, for each rank r,

    U[c, r] = sum_t P[c, t] u[c, r, t],    V[c, r] = sum_t P[c, t] v[c, r, t].

Kernels (Nu, Cu, d, k, k) with Nu = 1 serve all samples, with Cu = 1 all channels; their gradients are sums over those.
Backward, for cotangents A of U and B of V: grad_u = sum over the positions of A P, grad_v likewise, grad_P = A u + B v, which
grad_x gathers.

Both encodings are one tensor here, E = (U, V), as are both kernels and their gradients: axis e of (N, C, e, d, h, w).

A backward's own derivative, for cotangents X of grad_x and Y, Z of grad_u, grad_v, is that of <A, dU> + <B, dV> with the
encodings' derivative along (X, Y, Z), dU = X u + P Y and dV = X v + P Z (X: its pixels under the windows). With A' and B' what
that gives U and V themselves, apart from dU and dV,

    grad_u = sum over the positions of A X + A' P,    grad_P = A Y + B Z + A' u + B' v,

and grad_v as grad_u. Arithmetic is float32, float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .index_cell import accumulate_dtype
from .window import einsum, put, take


def windows(x: Tensor, k: int, stride: int) -> Tensor:
    """P: (N, C, H, W) -> (N, C, k * k, ceil(H / stride), ceil(W / stride)), in the accumulators' dtype."""
    return take(x.to(accumulate_dtype(x)), k, stride, -(-x.shape[2] // stride), -(-x.shape[3] // stride))


def stack(u: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """Both kernels of every sample and channel, (N, C, e, d, k * k)."""
    return torch.stack([u, v], 2).to(p.dtype).flatten(4).expand(*p.shape[:2], -1, -1, -1)


def encode(p: Tensor, kernels: Tensor) -> Tensor:
    """E, (N, C, e, d, h, w)."""
    return einsum("nctij,ncert->ncerij", p, kernels)


def sum_windows(p: Tensor, grad: Tensor) -> Tensor:
    """The kernels' gradient from that of their encodings, of every sample and channel, (N, C, e, d, k * k)."""
    return einsum("nctij,ncerij->ncert", p, grad)


def unstack(grad: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u and v from that of the stacked kernels."""
    samples, channels = u.shape[:2]
    grad_u, grad_v = grad.sum_to_size(samples, channels, *grad.shape[2:]).unbind(2)
    return grad_u.view(u.shape), grad_v.view(u.shape)


def grad_windows(grad: Tensor, kernels: Tensor) -> Tensor:
    """The gradient of P from that of the encodings, (N, C, k * k, h, w)."""
    return einsum("ncerij,ncert->nctij", grad, kernels)


def gather(grad_p: Tensor, x: Tensor, k: int, stride: int) -> Tensor:
    """The gradient of x from that of P."""
    return put(grad_p, k, stride, *x.shape[2:])


def encoding_double_backward(
    grad: Tensor, second: Tensor, p: Tensor, kernels: Tensor, direction_p: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of P and of the stacked kernels; ``grad``: A and B, ``second``: A' and B', both stacked."""
    grad_p = grad_windows(grad, directions) + grad_windows(second, kernels)
    return grad_p, sum_windows(direction_p, grad) + sum_windows(p, second)
