# SPDX-License-Identifier: Apache-2.0
"""Logits of low rank: the affinity-aware operators of [A2U] are the dynamic-kernel operators with

    logits[n, ch, i, j] = sum_r p[n, r, ch] a[n, r, i, j],

a (N, d, h, w) the affinity and p (N or 1, d, channels) the generator, the channels as in pyindexnet/reference/window.py.
Backward, from the gradient of the logits,

    grad_a[n, r, i, j] = sum_ch p[n, r, ch] grad_logits[n, ch, i, j],   grad_p[n, r, ch] = sum_ij a[n, r, i, j] grad_logits,

summed over n too where p has one row. The logits are bilinear in (a, p): along (A, P) they change by p A + P a, and
<grad_logits, p A + P a> has the gradient P grad_logits in a and A grad_logits in p. Arithmetic is float32, float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .index_cell import accumulate_dtype
from .window import einsum

#: Largest rank d: position-wise encodings of scale 4.
MAX_RANK = 16


def affinity_logits(a: Tensor, p: Tensor) -> Tensor:
    """(N, d, h, w), (N or 1, d, channels) -> (N, channels, h, w); float32, float64 for float64."""
    dtype = accumulate_dtype(a)
    return einsum("nrc,nrij->ncij", p.to(dtype).expand(a.shape[0], -1, -1), a.to(dtype))


def affinity_vjp(grad_logits: Tensor, a: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and p."""
    grad = grad_logits.to(accumulate_dtype(a))
    grad_a = einsum("nrc,ncij->nrij", p.to(grad.dtype).expand(a.shape[0], -1, -1), grad)
    grad_p = einsum("nrij,ncij->nrc", a.to(grad.dtype), grad)
    return grad_a, grad_p.sum(0, keepdim=True) if p.shape[0] == 1 else grad_p


def affinity_jvp(directions: Sequence[Tensor], a: Tensor, p: Tensor) -> Tensor:
    """Derivative of the logits along directions of a and p."""
    along_a, along_p = directions
    return affinity_logits(along_a, p) + affinity_logits(a, along_p)


def affinity_second(grad_logits: Tensor, directions: Sequence[Tensor], a: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and p of <grad_logits, affinity_jvp(directions, a, p)>."""
    return affinity_vjp(grad_logits, *directions)
