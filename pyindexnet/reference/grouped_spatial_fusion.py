# SPDX-License-Identifier: Apache-2.0
"""Grouped spatial fusion, [TMFNet] Eq. 6: the windows of pyindexnet/reference/window.py at stride 1, kernels as they are."""

from __future__ import annotations

from torch import Tensor

from .window import Window, window_reference


def grouped_spatial_fusion_window(x: Tensor, kernels: Tensor, kernel_size: int, groups: int, group_order: str) -> Window:
    """The geometry of a call; arguments of the dispatcher op."""
    return Window(kernel_size, groups, "none", x.shape[2], x.shape[3], interleaved=group_order == "interleaved")


def grouped_spatial_fusion_reference(x: Tensor, kernels: Tensor, kernel_size: int, groups: int, group_order: str) -> Tensor:
    """y[c,i,j] = sum_t kernels[g(c) k k + t,i,j] x[c, i + dy, j + dx], float32, float64 for float64."""
    return window_reference(x, kernels, grouped_spatial_fusion_window(x, kernels, kernel_size, groups, group_order))
