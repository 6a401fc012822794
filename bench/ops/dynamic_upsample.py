# SPDX-License-Identifier: Apache-2.0
"""dynamic_upsample: reads x and the logits, writes a map of twice the size. ``Case.size`` is that of x."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .window import WindowBench, kernels_shape, unfold, weigh

_VARIANTS = {f"up {k} x {k}": {"kernel_size": k, "groups": 1, "scale": 2, "layout": "shuffled"} for k in (3, 5)}


def published(x: Tensor, logits: Tensor, *, kernel_size: int, groups: int, scale: int, layout: str) -> Tensor:
    """CARAFE as its paper writes it: shuffle, softmax, unfold, nearest upsampling of the windows, weighted sum."""
    n, c, h, w = x.shape
    z = F.softmax(F.pixel_shuffle(logits, scale).unflatten(1, (groups, -1)), 2)
    pixels = F.interpolate(unfold(x, kernel_size).view(n, -1, h, w), scale_factor=float(scale), mode="nearest")
    return weigh(pixels.view(n, c, -1, scale * h, scale * w), z, groups)


BENCH = WindowBench(
    name="dynamic_upsample",
    normalization="softmax",
    inputs=lambda case: (case.size, kernels_shape(_VARIANTS, case, scale=2)),
    outputs=lambda case: ((*case.size[:2], 2 * case.size[2], 2 * case.size[3]),),
    published=published,
    kinds=tuple(_VARIANTS),
    variants=_VARIANTS,
    sizes=((1, 64, 64, 64), (1, 128, 64, 64), (1, 256, 64, 64), (1, 64, 128, 128), (1, 256, 128, 128)),
)
