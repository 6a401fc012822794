# SPDX-License-Identifier: Apache-2.0
"""Upsampling with kernels generated from an affinity map, [A2U]: dynamic_upsample with the logits of affinity.py."""

from __future__ import annotations

from torch import Tensor

from .affinity import affinity_logits
from .window import Window, window_reference


def affinity_upsample_window(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str, height: int, width: int
) -> Window:
    """The geometry of a call; arguments of the dispatcher op."""
    return Window(kernel_size, groups, normalization, height, width, scale=scale)


def affinity_upsample_reference(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str, height: int, width: int
) -> Tensor:
    """dynamic_upsample(x, sum_r p_r a_r), float32, float64 for float64."""
    window = affinity_upsample_window(x, a, p, kernel_size, groups, scale, normalization, height, width)
    return window_reference(x, affinity_logits(a, p), window)
