# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the affinity-aware operators share: the map of logits, as the published modules write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .case import Case
from .window import kernels_shape

#: Name of the side that writes the logits and gives them to our dynamic-kernel operator.
MATERIALISED = "materialised"


def logits(a: Tensor, p: Tensor) -> Tensor:
    """The 1 x 1 product of generator and affinity map, (N, channels, h, w)."""
    n, _, h, w = a.shape
    return p.transpose(1, 2).matmul(a.flatten(2)).view(n, -1, h, w)


def affinity_shapes(
    variants: Mapping[str, dict[str, Any]], case: Case, scale: int = 1, stride: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Shapes of a and p of rank 1, a generator for each sample."""
    n, channels, h, w = kernels_shape(variants, case, scale, stride)
    return (n, 1, h, w), (n, 1, channels)
