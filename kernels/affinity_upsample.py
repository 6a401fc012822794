# SPDX-License-Identifier: Apache-2.0
"""affinity_upsample, Triton. Equations: pyindexnet/reference/affinity.py; kernels: window.py, affinity.py."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.reference.affinity_upsample import affinity_upsample_window

from .affinity_launch import launch, launch_backward


def affinity_upsample(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str, height: int, width: int
) -> Tensor:
    """y = sum_t z_t x_t, (N, C, height, width)."""
    return launch(x, a, p, affinity_upsample_window(x, a, p, kernel_size, groups, scale, normalization, height, width))


def affinity_upsample_backward(
    grad: Tensor,
    x: Tensor,
    a: Tensor,
    p: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    height: int,
    width: int,
    need_x: bool,
    need_a: bool,
    need_p: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_a, grad_p); an output that is not needed is empty."""
    window = affinity_upsample_window(x, a, p, kernel_size, groups, scale, normalization, height, width)
    return launch_backward(grad, x, a, p, window, need_x, need_a, need_p)
