# SPDX-License-Identifier: Apache-2.0
"""Indexed upsampling, [IndexNet] section 4.1: IU(d) = I (x) D, D the nearest-neighbour upsampling of d.

y[n,c,r i + dy,r j + dx] = z[n,c,k,i,j] x[n,c,i,j] with z the normalised logits. The factor of z is x, kept per position.
Backward: grad_x = sum_k z_k grad_k (factor grad, the sum kept), grad_logits = J^T (grad x).
"""

from __future__ import annotations

from torch import Tensor

from . import index_cell as ic
from .normalization import cells, present, uncells


def indexed_upsample_reference(x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> Tensor:
    dtype = ic.accumulate_dtype(x)
    inside = present((height, width), ratio, x.device)
    u = ic.weigh(x.to(dtype).unsqueeze(2), logits.to(dtype), normalization, inside)
    return uncells(u, ratio, height, width)


def indexed_upsample_backward_reference(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str
) -> tuple[Tensor, Tensor]:
    dtype = ic.accumulate_dtype(x)
    inside = present(grad.shape[2:], ratio, x.device)
    t, o, a = cells(grad.to(dtype), ratio), x.to(dtype).unsqueeze(2), logits.to(dtype)
    return ic.weigh(t, a, normalization, inside).sum(2), ic.grad_logits(t, o, a, normalization, inside)


def indexed_upsample_double_backward_reference(
    grad_grad_x: Tensor, grad_grad_logits: Tensor, grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, x and logits; differentiable again by autograd."""
    dtype = ic.accumulate_dtype(x)
    inside = present(grad.shape[2:], ratio, x.device)
    t, o, a = cells(grad.to(dtype), ratio), x.to(dtype).unsqueeze(2), logits.to(dtype)
    dt, do, da = ic.double_backward(
        grad_grad_x.to(dtype).unsqueeze(2), grad_grad_logits.to(dtype), t, o, a, normalization, inside
    )
    return uncells(dt, ratio, *grad.shape[2:]), do.sum(2), da
