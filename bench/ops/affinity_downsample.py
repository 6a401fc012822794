# SPDX-License-Identifier: Apache-2.0
"""affinity_downsample: reads x, the affinity map and its generator, writes a map of half the size. ``Case.size`` is that of x.

At rank 1 the map holds one number where the logits of k x k kernels would be k^2: beside x and y, which are 5 C numbers for a
cell, the logits written and read again by the side ``materialised`` are 72 numbers at k = 6.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import pyindexnet

from . import dynamic_downsample
from .affinity import MATERIALISED, affinity_shapes, logits
from .case import Case
from .window import WindowBench, resolve

_VARIANTS = {"affinity down 6 x 6": {"kernel_size": 6, "groups": 1, "scale": 2}}


def published(x: Tensor, a: Tensor, p: Tensor, *, kernel_size: int, groups: int, scale: int) -> Tensor:
    """A2U as published: the logits by a 1 x 1 product, softmax, unfold with stride 2, weighted sum."""
    return dynamic_downsample.published(x, logits(a, p), kernel_size=kernel_size, groups=groups, scale=scale)


def _materialised(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    options = {**resolve(_VARIANTS, case), "normalization": "softmax"}
    return lambda x, a, p: pyindexnet.dynamic_downsample(x, logits(a, p), **options)


BENCH = WindowBench(
    name="affinity_downsample",
    normalization="softmax",
    inputs=lambda case: (case.size, *affinity_shapes(_VARIANTS, case, stride=2)),
    outputs=lambda case: ((*case.size[:2], case.size[2] // 2, case.size[3] // 2),),
    published=published,
    kinds=tuple(_VARIANTS),
    sides={MATERIALISED: _materialised},
    variants=_VARIANTS,
    sizes=((1, 64, 128, 128), (1, 256, 128, 128)),
)
