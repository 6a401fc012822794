# SPDX-License-Identifier: Apache-2.0
"""Cells, index normalisation and its derivatives: the formulas under all indexed operators.

A cell is one low-resolution pixel with its ``ratio x ratio`` block of high-resolution pixels; position
``k = dy * ratio + dx`` (the pixel-shuffle order). Logits ``a`` have shape (N, Ci, K, h, w). A position outside an image of
odd size is absent: it takes no part in a softmax and its weight and gradient are 0.

Notation: ``s`` = sigmoid(a); ``p`` = softmax over K; ``J`` = dz/da. Per cell,

===================  ======================  ====================================================================
normalization        z                       J^T d
===================  ======================  ====================================================================
``none``             a                       d
``sigmoid``          s(a)                    s' d,  s' = s (1 - s)
``softmax``          p(a)                    p (d - <p, d>)
``sigmoid_softmax``  p(s(a)), [IndexNet] 4.1 s' p (d - <p, d>)
``softmax_sigmoid``  s(p(a))                 p (e - <p, e>),  e = s'(p) d,  [Thesis] table 3.5
===================  ======================  ====================================================================

J of each stage is symmetric, so J v applies the stages in the order of z, and J^T d in the opposite order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATIONS = ("none", "sigmoid", "softmax", "sigmoid_softmax", "softmax_sigmoid")


def cells(x: Tensor, ratio: int) -> Tensor:
    """(N, C, H, W) -> (N, C, K, h, w), absent positions filled with 0."""
    n, c, height, width = x.shape
    h, w = -(-height // ratio), -(-width // ratio)
    x = F.pad(x, (0, w * ratio - width, 0, h * ratio - height))
    return x.reshape(n, c, h, ratio, w, ratio).permute(0, 1, 3, 5, 2, 4).reshape(n, c, ratio * ratio, h, w)


def uncells(z: Tensor, ratio: int, height: int, width: int) -> Tensor:
    """(N, C, K, h, w) -> (N, C, height, width): inverse of :func:`cells`, absent positions cut off."""
    n, c, _, h, w = z.shape
    z = z.reshape(n, c, ratio, ratio, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, h * ratio, w * ratio)
    return z[:, :, :height, :width]


def present(size: Sequence[int], ratio: int, device: torch.device) -> Tensor:
    """Which positions lie inside an image of ``size`` (H, W): bool, (K, h, w)."""
    return cells(torch.ones(1, 1, *size, device=device), ratio)[0, 0] > 0


def _softmax(a: Tensor, inside: Tensor) -> Tensor:
    return a.masked_fill(~inside, -torch.inf).softmax(2)


def _softmax_vjp(p: Tensor, d: Tensor) -> Tensor:
    return p * (d - (p * d).sum(2, keepdim=True))


def normalize(a: Tensor, how: str, inside: Tensor) -> Tensor:
    """z(a), (N, Ci, K, h, w); 0 at absent positions."""
    if how == "sigmoid":
        z = a.sigmoid()
    elif how == "softmax":
        z = _softmax(a, inside)
    elif how == "sigmoid_softmax":
        z = _softmax(a.sigmoid(), inside)
    elif how == "softmax_sigmoid":
        z = _softmax(a, inside).sigmoid()
    else:
        z = a
    return z.masked_fill(~inside, 0)


def normalize_jvp(a: Tensor, v: Tensor, how: str, inside: Tensor) -> Tensor:
    """J v."""
    if how == "sigmoid":
        s = a.sigmoid()
        out = s * (1 - s) * v
    elif how == "softmax":
        out = _softmax_vjp(_softmax(a, inside), v)
    elif how == "sigmoid_softmax":
        s = a.sigmoid()
        out = _softmax_vjp(_softmax(s, inside), s * (1 - s) * v)
    elif how == "softmax_sigmoid":
        p = _softmax(a, inside)
        z = p.sigmoid()
        out = z * (1 - z) * _softmax_vjp(p, v)
    else:
        out = v
    return out.masked_fill(~inside, 0)


def normalize_vjp(a: Tensor, d: Tensor, how: str, inside: Tensor) -> Tensor:
    """J^T d."""
    if how == "sigmoid_softmax":
        s = a.sigmoid()
        out = s * (1 - s) * _softmax_vjp(_softmax(s, inside), d)
    elif how == "softmax_sigmoid":
        p = _softmax(a, inside)
        z = p.sigmoid()
        out = _softmax_vjp(p, z * (1 - z) * d)
    else:
        return normalize_jvp(a, d, how, inside)  # J is symmetric
    return out.masked_fill(~inside, 0)


def _softmax_second(p: Tensor, v: Tensor, d: Tensor) -> Tensor:
    """d/da <J v, d> for the softmax: J^T of the derivative of <p v, d> - <p, v><p, d> with respect to p."""
    pv, pd = (p * v).sum(2, keepdim=True), (p * d).sum(2, keepdim=True)
    return _softmax_vjp(p, v * d - v * pd - d * pv)


def normalize_second(a: Tensor, v: Tensor, d: Tensor, how: str, inside: Tensor) -> Tensor:
    """d/da <J(a) v, d>, (N, Ci, K, h, w): what a double backward needs beyond J."""
    if how == "none":
        return torch.zeros_like(a)
    if how == "sigmoid":
        s = a.sigmoid()
        out = s * (1 - s) * (1 - 2 * s) * v * d
    elif how == "softmax":
        out = _softmax_second(_softmax(a, inside), v, d)
    elif how == "sigmoid_softmax":
        s = a.sigmoid()
        slope = s * (1 - s)
        p = _softmax(s, inside)
        out = slope * _softmax_second(p, slope * v, d) + slope * (1 - 2 * s) * v * _softmax_vjp(p, d)
    else:
        p = _softmax(a, inside)
        z = p.sigmoid()
        slope = z * (1 - z)
        out = _softmax_second(p, v, slope * d) + _softmax_vjp(p, slope * (1 - 2 * z) * _softmax_vjp(p, v) * d)
    return out.masked_fill(~inside, 0)
