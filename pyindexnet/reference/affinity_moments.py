# SPDX-License-Identifier: Apache-2.0
"""affinity_moments: mean and variance of the two encodings of a feature map over groups of channels.

With E an encoding (pyindexnet/reference/encoding.py) and <.> the mean over the n channels of a group and positions,

    mean = <E>,    var = <(E - mean)^2>.

Backward, for cotangents g of mean and s of var:

    grad_E = (g + 2 s (E - mean)) / n.

Its own derivative, with dE the encoding's derivative along the cotangents, is that of sum of grad_E dE:

    grad_g = <dE>,    grad_s = 2 <(E - mean) dE>,    of dE: grad_E,    of E: 2 s (dE - <dE>) / n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import encode, encoding_double_backward, gather, grad_windows, stack, sum_windows, unstack, windows


def _mean(encodings: Tensor, groups: int) -> Tensor:
    """(N, groups, 1, e, d, 1, 1)."""
    return encodings.unflatten(1, (groups, -1)).mean((2, 5, 6), keepdim=True)


def _centred(encodings: Tensor, groups: int) -> Tensor:
    """The encodings less their means, (N, C, e, d, h, w)."""
    return (encodings.unflatten(1, (groups, -1)) - _mean(encodings, groups)).flatten(1, 2)


def _join(mean: Tensor, variance: Tensor) -> Tensor:
    """(N, groups, d, e, 2)."""
    return torch.stack([mean, variance], -1).squeeze((2, 5, 6)).transpose(2, 3)


def _split(moments: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What belongs to mean and variance, for each channel, (N, C, e, d, 1, 1)."""
    n, groups, rank, _, _ = moments.shape
    each = moments.to(dtype).transpose(2, 3)[:, :, None].expand(n, groups, channels // groups, 2, rank, 2)
    mean, variance = each.flatten(1, 2)[..., None, None, :].unbind(-1)
    return mean, variance


def _count(encodings: Tensor, groups: int) -> int:
    _, channels, _, _, h, w = encodings.shape
    return channels // groups * h * w


def affinity_moments_reference(x: Tensor, u: Tensor, v: Tensor, groups: int, stride: int) -> Tensor:
    p = windows(x, u.shape[4], stride)
    encodings = encode(p, stack(u, v, p))
    return _join(_mean(encodings, groups), _mean(_centred(encodings, groups).square(), groups))


def affinity_moments_backward_reference(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, groups: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, u and v."""
    k = u.shape[4]
    p = windows(x, k, stride)
    kernels = stack(u, v, p)
    centred = _centred(encode(p, kernels), groups)
    mean, variance = _split(grad, x.shape[1], p.dtype)
    grads = (mean + 2 * variance * centred) / _count(centred, groups)
    return gather(grad_windows(grads, kernels), x, k, stride), *unstack(sum_windows(p, grads), u)


def affinity_moments_double_backward_reference(
    grad_grad_x: Tensor,
    grad_grad_u: Tensor,
    grad_grad_v: Tensor,
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    groups: int,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad, x, u and v; differentiable again by autograd."""
    k = u.shape[4]
    p, direction_p = windows(x, k, stride), windows(grad_grad_x, k, stride)
    kernels, directions = stack(u, v, p), stack(grad_grad_u, grad_grad_v, p)
    centred = _centred(encode(p, kernels), groups)
    moved = encode(direction_p, kernels) + encode(p, directions)
    mean, variance = _split(grad, x.shape[1], p.dtype)
    grads = (mean + 2 * variance * centred) / _count(centred, groups)
    seconds = 2 * variance * _centred(moved, groups) / _count(centred, groups)
    grad_p, grad_kernels = encoding_double_backward(grads, seconds, p, kernels, direction_p, directions)
    d_grad = _join(_mean(moved, groups), 2 * _mean(centred * moved, groups))
    return d_grad, gather(grad_p, x, k, stride), *unstack(grad_kernels, u)
