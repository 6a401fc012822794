# SPDX-License-Identifier: Apache-2.0
"""Downsampling with kernels generated from an affinity map, [A2U]: dynamic_downsample with the logits of affinity.py."""

from __future__ import annotations

from torch import Tensor

from .affinity import affinity_logits
from .window import Window, window_reference


def affinity_downsample_window(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> Window:
    """The geometry of a call; arguments of the dispatcher op."""
    return Window(kernel_size, groups, normalization, a.shape[2], a.shape[3], stride=scale)


def affinity_downsample_reference(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> Tensor:
    """dynamic_downsample(x, sum_r p_r a_r), float32, float64 for float64."""
    window = affinity_downsample_window(x, a, p, kernel_size, groups, scale, normalization)
    return window_reference(x, affinity_logits(a, p), window)
