# SPDX-License-Identifier: Apache-2.0
"""Indexed pooling that also keeps the index-multiplied map, which the UNet decoder of [IndexNet] concatenates.

skip = z x at full resolution, pooled = its sum over each cell. Backward: with G_k = grad_skip_k + grad_pooled,
grad_x = z G and grad_logits = J^T (G x).
"""

from __future__ import annotations

from torch import Tensor

from . import index_cell as ic
from .normalization import cells, present, uncells


def indexed_pool_skip_reference(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> tuple[Tensor, Tensor]:
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    u = ic.weigh(cells(x.to(dtype), ratio), logits.to(dtype), normalization, inside)
    return u.sum(2), uncells(u, ratio, *x.shape[2:])


def indexed_pool_skip_backward_reference(
    grad_pooled: Tensor, grad_skip: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str
) -> tuple[Tensor, Tensor]:
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    t = cells(grad_skip.to(dtype), ratio) + grad_pooled.to(dtype).unsqueeze(2)
    o, a = cells(x.to(dtype), ratio), logits.to(dtype)
    grad_x = uncells(ic.weigh(t, a, normalization, inside), ratio, *x.shape[2:])
    return grad_x, ic.grad_logits(t, o, a, normalization, inside)


def indexed_pool_skip_double_backward_reference(
    grad_grad_x: Tensor,
    grad_grad_logits: Tensor,
    grad_pooled: Tensor,
    grad_skip: Tensor,
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad_pooled, grad_skip, x and logits; differentiable again by autograd."""
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    t = cells(grad_skip.to(dtype), ratio) + grad_pooled.to(dtype).unsqueeze(2)
    dt, do, da = ic.double_backward(
        cells(grad_grad_x.to(dtype), ratio),
        grad_grad_logits.to(dtype),
        t,
        cells(x.to(dtype), ratio),
        logits.to(dtype),
        normalization,
        inside,
    )
    size = x.shape[2:]
    return dt.sum(2), uncells(dt, ratio, *size), uncells(do, ratio, *size), da
