# SPDX-License-Identifier: Apache-2.0
"""dynamic_upsample: reads x and the logits, writes a map of twice the size. ``Case.size`` is that of x."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .window import WindowBench, kernels_shape, unfold, weigh

#: Name of the side that is ``torch.compile`` of :func:`low`.
COMPILE_LOW = "compile_low"
_VARIANTS = {f"up {k} x {k}": {"kernel_size": k, "groups": 1, "scale": 2, "layout": "shuffled"} for k in (3, 5)}


def published(x: Tensor, logits: Tensor, *, kernel_size: int, groups: int, scale: int, layout: str) -> Tensor:
    """CARAFE as its paper writes it: shuffle, softmax, unfold, nearest upsampling of the windows, weighted sum."""
    n, c, h, w = x.shape
    z = F.softmax(F.pixel_shuffle(logits, scale).unflatten(1, (groups, -1)), 2)
    pixels = F.interpolate(unfold(x, kernel_size).view(n, -1, h, w), scale_factor=float(scale), mode="nearest")
    return weigh(pixels.view(n, c, -1, scale * h, scale * w), z, groups)


def low(x: Tensor, logits: Tensor, *, kernel_size: int, groups: int, scale: int, layout: str) -> Tensor:
    """The same at the size of x: each window once for the scale^2 pixels that it serves, and the sums are shuffled, not z."""
    n, c, h, w = x.shape
    z = F.softmax(logits.view(n, groups, 1, kernel_size**2, scale**2, h, w), 3)
    pixels = unfold(x, kernel_size).view(n, groups, c // groups, kernel_size**2, 1, h, w)
    return F.pixel_shuffle((pixels * z).sum(3).reshape(n, c * scale**2, h, w), scale)


BENCH = WindowBench(
    name="dynamic_upsample",
    normalization="softmax",
    inputs=lambda case: (case.size, kernels_shape(_VARIANTS, case, scale=2)),
    outputs=lambda case: ((*case.size[:2], 2 * case.size[2], 2 * case.size[3]),),
    published=published,
    kinds=tuple(_VARIANTS),
    formulas={COMPILE_LOW: low},
    variants=_VARIANTS,
    sizes=((1, 64, 64, 64), (1, 128, 64, 64), (1, 256, 64, 64), (1, 64, 128, 128), (1, 256, 128, 128)),
)
