# SPDX-License-Identifier: Apache-2.0
"""dynamic_upsample, Triton. Equations: pyindexnet/reference/window.py; kernels: window.py."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.reference.dynamic_upsample import dynamic_upsample_window

from .window_launch import launch, launch_backward


def dynamic_upsample(
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    dense: bool,
    height: int,
    width: int,
) -> Tensor:
    """y = sum_t z_t x_t, (N, C, height, width)."""
    return launch(
        x, logits, dynamic_upsample_window(x, logits, kernel_size, groups, scale, normalization, dense, height, width)
    )


def dynamic_upsample_backward(
    grad: Tensor,
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    dense: bool,
    height: int,
    width: int,
    need_x: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_logits); an output that is not needed is empty."""
    window = dynamic_upsample_window(x, logits, kernel_size, groups, scale, normalization, dense, height, width)
    return launch_backward(grad, x, logits, window, need_x, need_logits)
