# SPDX-License-Identifier: Apache-2.0
"""affinity_map, Triton: launchers. Equation: pyindexnet/reference/affinity_map.py; kernels: encoding.py."""

from __future__ import annotations

import torch
from torch import Tensor

from pyindexnet.reference.index_cell import memory_format

from .encoding_launch import Encoding


def affinity_map(
    x: Tensor, u: Tensor, v: Tensor, affine: Tensor | None, stride: int, scale: float, negative_slope: float
) -> Tensor:
    """a = scale sum_c f_u f_v, (N, d, h, w)."""
    size = (x.shape[0], u.shape[2], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    if x.shape[0] > 0:
        with torch.cuda.device_of(x):
            Encoding(x, u, v, stride, affine, out).map(out, affine, scale, negative_slope)
    return out


def affinity_map_backward(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    affine: Tensor | None,
    stride: int,
    scale: float,
    negative_slope: float,
    *need: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, u, v and affine; one that is not needed is empty."""
    *need_encoding, need_affine = need
    grad_affine = torch.empty_like(affine) if affine is not None and need_affine else None
    with torch.cuda.device_of(x):
        grads = Encoding(x, u, v, stride, affine, grad).backward(
            need_encoding,
            u,
            v,
            grad=grad,
            affine=affine,
            grad_affine=grad_affine,
            scale=scale,
            slope=negative_slope,
        )
    return *grads, x.new_empty(0) if grad_affine is None else grad_affine
