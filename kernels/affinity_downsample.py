# SPDX-License-Identifier: Apache-2.0
"""affinity_downsample, Triton. Equations: pyindexnet/reference/affinity.py; kernels: window.py, affinity.py."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.reference.affinity_downsample import affinity_downsample_window

from .affinity_launch import launch, launch_backward


def affinity_downsample(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> Tensor:
    """y = sum_t z_t x_t, (N, C, h, w)."""
    return launch(x, a, p, affinity_downsample_window(x, a, p, kernel_size, groups, scale, normalization))


def affinity_downsample_backward(
    grad: Tensor,
    x: Tensor,
    a: Tensor,
    p: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    need_x: bool,
    need_a: bool,
    need_p: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_a, grad_p); an output that is not needed is empty."""
    window = affinity_downsample_window(x, a, p, kernel_size, groups, scale, normalization)
    return launch_backward(grad, x, a, p, window, need_x, need_a, need_p)
