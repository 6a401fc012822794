# SPDX-License-Identifier: Apache-2.0
"""indexed_pool_skip, Triton. Equations: pyindexnet/reference/indexed_pool_skip.py; kernel: index_cell.py."""

from __future__ import annotations

from torch import Tensor

from .index_cell_launch import empty_image, launch, launch_backward


def indexed_pool_skip(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> tuple[Tensor, Tensor]:
    """skip_k = z_k x_k, (N, C, H, W); pooled, (N, C, h, w), its sum over each cell."""
    pooled, skip = empty_image(x, *logits.shape[3:]), empty_image(x, *x.shape[2:])
    launch(x, logits, ratio, normalization, x.shape[2:], factor_high=x, out_low=pooled, out_high=skip)
    return pooled, skip


def indexed_pool_skip_backward(
    grad_pooled: Tensor,
    grad_skip: Tensor,
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    need_x: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """With G_k = grad_skip_k + grad_pooled: grad_x = z G, grad_logits = J^T (G x); an output not needed is empty."""
    return launch_backward(
        x,
        logits,
        ratio,
        normalization,
        x.shape[2:],
        need_x,
        need_logits,
        x_is_high=True,
        factor_high=grad_skip,
        factor_low=grad_pooled,
    )
