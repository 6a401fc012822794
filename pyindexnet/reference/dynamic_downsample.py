# SPDX-License-Identifier: Apache-2.0
"""Downsampling with a kernel per output pixel, CARAFE++ and the paired downsampling of [A2U]: windows at stride ``scale``."""

from __future__ import annotations

from torch import Tensor

from .window import Window, window_reference


def dynamic_downsample_window(
    x: Tensor, logits: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> Window:
    """The geometry of a call; arguments of the dispatcher op."""
    return Window(kernel_size, groups, normalization, logits.shape[2], logits.shape[3], stride=scale)


def dynamic_downsample_reference(
    x: Tensor, logits: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> Tensor:
    """y[c,i,j] = sum_t z[g(c),t,i,j] x[c, r i - (k-1)//2 + ty, r j - (k-1)//2 + tx], float32, float64 for float64."""
    return window_reference(x, logits, dynamic_downsample_window(x, logits, kernel_size, groups, scale, normalization))
