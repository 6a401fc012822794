# SPDX-License-Identifier: Apache-2.0
"""dynamic_downsample: reads x and the logits, writes a map of half the size. ``Case.size`` is that of x."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .window import WindowBench, kernels_shape, unfold, weigh

_VARIANTS = {f"down {k} x {k}": {"kernel_size": k, "groups": 1, "scale": 2} for k in (5, 6)}


def published(x: Tensor, logits: Tensor, *, kernel_size: int, groups: int, scale: int) -> Tensor:
    """Softmax, unfold with stride 2, weighted sum."""
    z = F.softmax(logits.unflatten(1, (groups, -1)), 2)
    return weigh(unfold(x, kernel_size, stride=scale), z, groups)


BENCH = WindowBench(
    name="dynamic_downsample",
    normalization="softmax",
    inputs=lambda case: (case.size, kernels_shape(_VARIANTS, case, stride=2)),
    outputs=lambda case: ((*case.size[:2], case.size[2] // 2, case.size[3] // 2),),
    published=published,
    kinds=tuple(_VARIANTS),
    variants=_VARIANTS,
    sizes=((1, 64, 128, 128), (1, 256, 128, 128)),
)
