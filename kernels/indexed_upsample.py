# SPDX-License-Identifier: Apache-2.0
"""indexed_upsample, Triton. Equations: pyindexnet/reference/indexed_upsample.py; kernel: index_cell.py."""

from __future__ import annotations

from torch import Tensor

from .index_cell_launch import empty_image, launch, launch_backward


def indexed_upsample(x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> Tensor:
    """y_k = z_k x, (N, C, height, width)."""
    y = empty_image(x, height, width)
    launch(x, logits, ratio, normalization, (height, width), factor_low=x, out_high=y)
    return y


def indexed_upsample_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    """grad_x = sum_k z_k grad_k, grad_logits = J^T (grad x); an output that is not needed is empty."""
    return launch_backward(
        x,
        logits,
        ratio,
        normalization,
        grad.shape[2:],
        need_x,
        need_logits,
        x_is_high=False,
        factor_high=grad,
    )
