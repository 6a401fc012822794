# SPDX-License-Identifier: Apache-2.0
"""affinity_map: schema, fake, autograd, public function."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..reference.affinity_map import (
    affinity_map_backward_reference,
    affinity_map_double_backward_reference,
    affinity_map_reference,
)
from ._common import autocast_inputs, check_same, check_tensor, dispatch
from ._encoding import check_encoding
from ._register import Sizes, register_operator

_OP = "affinity_map"


def _check_number(op: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} must be a finite number, got {value!r}")


def _sizes(
    op: str, x: Tensor, u: Tensor, v: Tensor, affine: Tensor | None, stride: int, scale: float, negative_slope: float
) -> Sizes:
    """Checks the arguments; the shape of the map."""
    check_encoding(op, x, u, v, stride)
    _check_number(op, "scale", scale)
    _check_number(op, "negative_slope", negative_slope)
    if affine is not None:
        check_tensor(op, "affine", affine, ("N", "C", "d", "2", "2"))
        want = (x.shape[0], x.shape[1], u.shape[2], 2, 2)
        if tuple(affine.shape) != want:
            raise ValueError(f"{op}: affine must be {want}, got {tuple(affine.shape)}")
        check_same(op, "affine", affine, x)
    return ((x.shape[0], u.shape[2], -(-x.shape[2] // stride), -(-x.shape[3] // stride)),)


register_operator(
    _OP,
    tensors=("x", "u", "v", "affine?"),
    options="int stride, float scale, float negative_slope",
    sizes=_sizes,
    reference=affinity_map_reference,
    backward_reference=affinity_map_backward_reference,
    double_backward_reference=affinity_map_double_backward_reference,
)


def affinity_map(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    stride: int = 2,
    scale: float = 1.0,
    affine: Tensor | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Second-order feature of a position: two encodings of its window, multiplied and summed over the channels.

    a[n,r,i,j] = scale · Σ_c f(U[n,c,r,i,j]) · f(V[n,c,r,i,j]),
    U[n,c,r,i,j] = Σ_{ty,tx} u[n,c,r,ty,tx] · x[n, c, s·i - ⌊(k-1)/2⌋ + ty, s·j - ⌊(k-1)/2⌋ + tx], V likewise with v; pixels
    outside the image are 0. f is the identity; with ``affine``, f(U) = leaky_relu(factor · U + shift): a group normalisation
    whose statistics (:func:`pyindexnet.affinity_moments`) are folded into a factor and a shift. x is read once for both
    encodings; neither they nor their product are written. Source: [A2U] Eq. 4.

    Args:
        x: encoder features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        u: encoding kernels, (Nu, Cu, d, k, k): Nu = N (dynamic) or 1 (static), Cu = C (channel-wise) or 1 (channel-shared), d
            within 1..16, k within 1..14; dtype and device of ``x``; any strides.
        v: as ``u``, of the same shape.
        stride: s, 1 to 4.
        scale: of the sum, 1 / sqrt(C) in the released A2U.
        affine: None, or (N, C, d, 2, 2): ``affine[n, c, r, e]`` holds the factor and the shift of u (e = 0) and v (e = 1);
            dtype and device of ``x``; any strides.
        negative_slope: of the leaky ReLU; used with ``affine`` only.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, d, ceil(H / s), ceil(W / s)), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, u, v, affine; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves the inputs; the backward computes the encodings again. Deterministic: yes (no atomics).
    """
    tensors: tuple[Tensor, ...] = (x, u, v) if affine is None else (x, u, v, affine)
    x, u, v, *rest = tensors = autocast_inputs(*tensors)
    affine = rest[0] if rest else None
    _sizes(_OP, x, u, v, affine, stride, scale, negative_slope)
    return dispatch(_OP, backend, tensors)(x, u, v, affine, stride, float(scale), float(negative_slope))
