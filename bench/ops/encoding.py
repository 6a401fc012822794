# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of affinity_map and affinity_moments share: cases by kernel size, the encodings as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.testing import Sample

from .case import Case, OpBench, Shape

STRIDE = 2
#: Features of its upsampling stages for an image of 512 x 512.
SIZES = ((1, 64, 256, 256), (1, 128, 128, 128), (1, 256, 64, 64))


def encode(x: Tensor, u: Tensor) -> Tensor:
    """(N, C, d, h, w): a convolution of stride 2 with a group per sample and channel, the whole batch at once."""
    (n, c), (d, k) = x.shape[:2], u.shape[2:4]
    before, after = (k - 1) // 2, k - 1 - (k - 1) // 2
    padding = before
    if before != after:
        x, padding = F.pad(x, (before, after, before, after)), 0
    if u.shape[0] == 1:
        weight, groups = u[0].expand(c, -1, -1, -1).reshape(c * d, 1, k, k), c
    else:
        weight, groups = u.expand(n, c, -1, -1, -1).reshape(n * c * d, 1, k, k), n * c
        x = x.reshape(1, n * c, *x.shape[2:])
    y = F.conv2d(x, weight, None, STRIDE, padding, groups=groups)
    return y.reshape(n, c, d, *y.shape[2:])


@dataclass(frozen=True)
class EncodingBench(OpBench):
    """An operator whose cases differ in size and encoding kernel; ``Case.size`` is that of x."""

    def options(self, case: Case) -> dict[str, Any]:
        return {"stride": STRIDE, **self.more(case)}

    def peer_options(self, case: Case) -> dict[str, Any]:
        return self.more(case)

    def timed_samples(self) -> list[Sample]:
        """Of the operator's tests, those of stride 2."""
        return [s for s in self.spec.samples if s.shapes[0][0] and s.options["stride"] == STRIDE]

    def own_cases(self, device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
        if quick:
            return [Case(SIZES[0], dtype, maps=self.kinds[0], device=device)]
        cases = [Case(size, dtype, maps=kind, device=device) for kind in self.kinds for size in SIZES]
        return [*cases, *(Case(size, dtype, "channels_last", self.kinds[0], device) for size in SIZES)]


def kinds(verb: str) -> tuple[str, ...]:
    """Of the encoding kernels of A2U as released: each sample has its own, shared by the channels, rank 1."""
    return tuple(f"{verb} {k} x {k}" for k in (5, 6))


def inputs(case: Case) -> tuple[Shape, ...]:
    """x, u and v."""
    k = int(case.maps.split()[-1])
    kernels = (case.size[0], 1, 1, k, k)
    return case.size, kernels, kernels


def grid(case: Case) -> Shape:
    """(h, w)."""
    return -(-case.size[2] // STRIDE), -(-case.size[3] // STRIDE)
