# SPDX-License-Identifier: Apache-2.0
"""indexed_pool, Triton. Equations: pyindexnet/reference/indexed_pool.py; kernel: index_cell.py."""

from __future__ import annotations

from torch import Tensor

from .index_cell_launch import empty_image, launch, launch_backward


def indexed_pool(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Tensor:
    """y = sum_k z_k x_k, (N, C, h, w)."""
    y = empty_image(x, *logits.shape[3:])
    launch(x, logits, ratio, normalization, x.shape[2:], factor_high=x, out_low=y)
    return y


def indexed_pool_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    """grad_x = z grad, grad_logits = J^T (grad x); an output that is not needed is empty."""
    return launch_backward(x, logits, ratio, normalization, x.shape[2:], need_x, need_logits, x_is_high=True, factor_low=grad)
