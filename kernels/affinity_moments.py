# SPDX-License-Identifier: Apache-2.0
"""affinity_moments, Triton: launchers. Equation: pyindexnet/reference/affinity_moments.py; kernels: encoding.py."""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding_launch import Encoding


def affinity_moments(x: Tensor, u: Tensor, v: Tensor, groups: int, stride: int) -> Tensor:
    """Mean and variance, (N, groups, d, 2, 2)."""
    out = x.new_empty(x.shape[0], groups, u.shape[2], 2, 2)
    if x.shape[0] > 0:
        with torch.cuda.device_of(x):
            out.copy_(torch.stack(Encoding(x, u, v, stride).moments(groups), -1))
    return out


def affinity_moments_backward(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, groups: int, stride: int, *need: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, u and v; one that is not needed is empty."""
    encoding = Encoding(x, u, v, stride)
    lines = None
    with torch.cuda.device_of(x):
        if x.shape[0] > 0:
            # grad_E = (g + 2 s (E - mean)) / n, for every channel
            mean, _ = encoding.moments(groups)
            g, s = grad.to(mean.dtype).unbind(-1)
            count = encoding.positions * (encoding.channels // groups)
            lines = torch.stack([g / count, 2 * s / count, mean], -1)
            lines = lines.repeat_interleave(encoding.channels // groups, 1, output_size=encoding.channels)
        return encoding.backward(need, u, v, lines=lines)
