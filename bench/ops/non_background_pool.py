# SPDX-License-Identifier: Apache-2.0
"""non_background_pool: reads x and the mask, writes the pooled map. ``Case.maps`` names the windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.testing import Sample

from .case import Case, OpBench

#: Kinds of this operator's cases: one window, or the four of TMP on equal chunks of the channels.
WINDOWS = {"window 31": (31,), "window 5": (5,), "windows of TMP": (31, 17, 11, 5)}
#: Sizes of TMP for images of 512, 1024 and 2048 pixels.
_SIZES = ((1, 512, 32, 32), (1, 512, 64, 64), (1, 512, 128, 128))


def published(x: Tensor, mask: Tensor, *, kernel_size: tuple[int, ...]) -> Tensor:
    """[TMFNet] Eq. 3 step by step: a product and two average poolings per window."""

    def pool(t: Tensor, k: int) -> Tensor:
        return F.avg_pool2d(t, k, 1, k // 2, count_include_pad=False)

    chunks = x.chunk(len(kernel_size), 1)
    parts = [pool(part * mask, k) / (pool(mask, k) + 1e-6) for part, k in zip(chunks, kernel_size, strict=True)]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class PoolBench(OpBench):
    """An operator whose cases differ in their windows."""

    kinds: tuple[str, ...] = tuple(WINDOWS)

    def options(self, case: Case) -> dict[str, Any]:
        return {"kernel_size": WINDOWS[case.maps]}

    def peer_options(self, case: Case) -> dict[str, Any]:
        return self.options(case)

    def timed_samples(self) -> list[Sample]:
        return [s for s in self.spec.samples if s.shapes[0][0] and not s.options["count_include_pad"]]

    def own_cases(self, device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
        if quick:
            return [Case(_SIZES[1], dtype, maps="windows of TMP", device=device)]
        cases = [Case(size, dtype, maps=kind, device=device) for kind in WINDOWS for size in _SIZES]
        return [*cases, *(Case(size, dtype, "channels_last", "windows of TMP", device) for size in _SIZES)]


BENCH = PoolBench(
    name="non_background_pool",
    normalization="",
    inputs=lambda case: (case.size, (case.size[0], 1, *case.size[2:])),
    outputs=lambda case: (case.size,),
    published=published,
)
