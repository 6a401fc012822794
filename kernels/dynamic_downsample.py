# SPDX-License-Identifier: Apache-2.0
"""dynamic_downsample, Triton. Equations: pyindexnet/reference/window.py; kernels: window.py."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.reference.dynamic_downsample import dynamic_downsample_window

from .window_launch import launch, launch_backward


def dynamic_downsample(x: Tensor, logits: Tensor, kernel_size: int, groups: int, scale: int, normalization: str) -> Tensor:
    """y = sum_t z_t x_t, (N, C, h, w)."""
    return launch(x, logits, dynamic_downsample_window(x, logits, kernel_size, groups, scale, normalization))


def dynamic_downsample_backward(
    grad: Tensor,
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    need_x: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_logits); an output that is not needed is empty."""
    window = dynamic_downsample_window(x, logits, kernel_size, groups, scale, normalization)
    return launch_backward(grad, x, logits, window, need_x, need_logits)
