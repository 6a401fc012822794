# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 (Triton's language has no unpacking into a tuple)
"""Index normalisation of one cell, Triton. Formulas: pyindexnet/reference/normalization.py.

The K positions of a cell are tuples of K tiles, in registers; ``inside`` masks the positions inside the image.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(a, K: tl.constexpr):
    s = ()
    for k in tl.static_range(K):
        s = s + (1.0 / (1.0 + tl.exp(-a[k])),)
    return s


@triton.jit
def _softmax(a, inside, K: tl.constexpr, SHIFT: tl.constexpr):
    """Over the positions inside the image. SHIFT by the maximum unless ``a`` is bounded (a sigmoid)."""
    # The first position of a cell is always inside.
    if SHIFT:
        top = a[0]
        for k in tl.static_range(1, K):
            top = tl.maximum(top, tl.where(inside[k], a[k], top))
    total = tl.exp(a[0] - top) if SHIFT else tl.exp(a[0])
    p = (total,)
    for k in tl.static_range(1, K):
        e = tl.where(inside[k], tl.exp(a[k] - top) if SHIFT else tl.exp(a[k]), 0.0)
        total += e
        p = p + (e,)
    scale = 1.0 / total
    out = ()
    for k in tl.static_range(K):
        # alone it weighs exactly 1: a rounding of e / e would leave its logit a gradient
        out = out + (tl.where(p[k] == total, 1.0, p[k] * scale),)
    return out


@triton.jit
def normalize(a, inside, HOW: tl.constexpr, K: tl.constexpr):
    """(z, first): the normalised logits and, where there are two stages, the result of the first; else z again."""
    if HOW == "none":
        first = a
        z = a
    elif HOW == "sigmoid":
        first = _sigmoid(a, K)
        z = first
    elif HOW == "softmax":
        first = _softmax(a, inside, K, True)
        z = first
    elif HOW == "sigmoid_softmax":
        first = _sigmoid(a, K)
        z = _softmax(first, inside, K, False)
    else:
        tl.static_assert(HOW == "softmax_sigmoid")
        first = _softmax(a, inside, K, True)
        z = _sigmoid(first, K)
    return z, first


@triton.jit
def _sigmoid_vjp(s, d, K: tl.constexpr):
    out = ()
    for k in tl.static_range(K):
        out = out + (s[k] * (1.0 - s[k]) * d[k],)
    return out


@triton.jit
def _softmax_vjp(p, d, K: tl.constexpr):
    mean = p[0] * d[0]
    for k in tl.static_range(1, K):
        mean += p[k] * d[k]
    out = ()
    for k in tl.static_range(K):
        out = out + (p[k] * (d[k] - mean),)
    return out


@triton.jit
def normalize_vjp(z, first, d, HOW: tl.constexpr, K: tl.constexpr):
    """J^T d from the results of :func:`normalize`."""
    if HOW == "none":
        out = d
    elif HOW == "sigmoid":
        out = _sigmoid_vjp(z, d, K)
    elif HOW == "softmax":
        out = _softmax_vjp(z, d, K)
    elif HOW == "sigmoid_softmax":
        out = _sigmoid_vjp(first, _softmax_vjp(z, d, K), K)
    else:
        out = _softmax_vjp(first, _sigmoid_vjp(z, d, K), K)
    return out
