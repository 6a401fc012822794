# SPDX-License-Identifier: Apache-2.0
"""grouped_spatial_fusion, Triton. Equations: pyindexnet/reference/window.py; kernels: window.py."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.reference.grouped_spatial_fusion import grouped_spatial_fusion_window

from .window_launch import launch, launch_backward


def grouped_spatial_fusion(x: Tensor, kernels: Tensor, kernel_size: int, groups: int, group_order: str) -> Tensor:
    """y = sum_t kernels_t x_t, (N, C, H, W)."""
    return launch(x, kernels, grouped_spatial_fusion_window(x, kernels, kernel_size, groups, group_order))


def grouped_spatial_fusion_backward(
    grad: Tensor,
    x: Tensor,
    kernels: Tensor,
    kernel_size: int,
    groups: int,
    group_order: str,
    need_x: bool,
    need_kernels: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_kernels); an output that is not needed is empty."""
    window = grouped_spatial_fusion_window(x, kernels, kernel_size, groups, group_order)
    return launch_backward(grad, x, kernels, window, need_x, need_kernels)
