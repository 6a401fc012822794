# SPDX-License-Identifier: Apache-2.0
"""affinity_upsample: reads x, the affinity map and its generator, writes a map of twice the size. ``Case.size`` is that of x.

At rank 1 the map holds one number where the logits of k x k kernels would be 4 k^2: beside x and y, which are 5 C numbers for a
cell, the logits written and read again by the side ``materialised`` are 72 numbers at k = 3 and 200 at k = 5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

import pyindexnet

from .affinity import MATERIALISED, affinity_shapes, logits
from .case import Case
from .window import WindowBench, resolve, unfold, weigh

_VARIANTS = {f"affinity up {k} x {k}": {"kernel_size": k, "groups": 1, "scale": 2} for k in (3, 5)}


def published(x: Tensor, a: Tensor, p: Tensor, *, kernel_size: int, groups: int, scale: int) -> Tensor:
    """A2U as published: the logits by a 1 x 1 product, shuffle, softmax of the sigmoid, windows upsampled nearest, sum."""
    n, c, h, w = x.shape
    z = F.softmax(F.pixel_shuffle(logits(a, p), scale).sigmoid().unflatten(1, (groups, -1)), 2)
    pixels = F.interpolate(unfold(x, kernel_size).view(n, -1, h, w), scale_factor=float(scale), mode="nearest")
    return weigh(pixels.view(n, c, -1, scale * h, scale * w), z, groups)


def _materialised(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    options = {**resolve(_VARIANTS, case), "normalization": "sigmoid_softmax"}
    return lambda x, a, p: pyindexnet.dynamic_upsample(x, logits(a, p), **options)


BENCH = WindowBench(
    name="affinity_upsample",
    normalization="sigmoid_softmax",
    inputs=lambda case: (case.size, *affinity_shapes(_VARIANTS, case, scale=2)),
    outputs=lambda case: ((*case.size[:2], 2 * case.size[2], 2 * case.size[3]),),
    published=published,
    kinds=tuple(_VARIANTS),
    sides={MATERIALISED: _materialised},
    variants=_VARIANTS,
    sizes=((1, 64, 64, 64), (1, 256, 64, 64), (1, 64, 128, 128)),
)
