# SPDX-License-Identifier: Apache-2.0
"""Upsampling with a kernel per output pixel, CARAFE and [A2U] Eq. 1: windows at stride 1, scale^2 sub-positions each."""

from __future__ import annotations

from torch import Tensor

from .window import Window, window_reference


def dynamic_upsample_window(
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    dense: bool,
    height: int,
    width: int,
) -> Window:
    """The geometry of a call; arguments of the dispatcher op."""
    return Window(kernel_size, groups, normalization, height, width, scale=scale, dense=dense)


def dynamic_upsample_reference(
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
    """y[c,p,q] = sum_t z[g(c),t,p,q] x[c, p // r + dy, q // r + dx], float32, float64 for float64."""
    window = dynamic_upsample_window(x, logits, kernel_size, groups, scale, normalization, dense, height, width)
    return window_reference(x, logits, window)
