# SPDX-License-Identifier: Apache-2.0
"""Indexed pooling, [IndexNet] section 4.1: IP(E) = sum over x in E of I(x) x.

y[n,c,i,j] = sum_k z[n,c,k,i,j] x[n,c,r i + dy,r j + dx] with z the normalised logits. The factor of z is x, the pass keeps the
sum. Backward: grad_x = z grad (factor grad, kept per position), grad_logits = J^T (grad x).
"""

from __future__ import annotations

from torch import Tensor

from . import index_cell as ic
from .normalization import cells, present, uncells


def indexed_pool_reference(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Tensor:
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    return ic.weigh(cells(x.to(dtype), ratio), logits.to(dtype), normalization, inside).sum(2)


def indexed_pool_backward_reference(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str
) -> tuple[Tensor, Tensor]:
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    t, o, a = grad.to(dtype).unsqueeze(2), cells(x.to(dtype), ratio), logits.to(dtype)
    grad_x = uncells(ic.weigh(t, a, normalization, inside), ratio, *x.shape[2:])
    return grad_x, ic.grad_logits(t, o, a, normalization, inside)


def indexed_pool_double_backward_reference(
    grad_grad_x: Tensor, grad_grad_logits: Tensor, grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, x and logits; differentiable again by autograd."""
    dtype = ic.accumulate_dtype(x)
    inside = present(x.shape[2:], ratio, x.device)
    t, o, a = grad.to(dtype).unsqueeze(2), cells(x.to(dtype), ratio), logits.to(dtype)
    dt, do, da = ic.double_backward(
        cells(grad_grad_x.to(dtype), ratio), grad_grad_logits.to(dtype), t, o, a, normalization, inside
    )
    return dt.sum(2), uncells(do, ratio, *x.shape[2:]), da
