# SPDX-License-Identifier: Apache-2.0
"""Samples that reach every CUDA kernel: vectors along rows and channels, partial warps and blocks, chunks and slices."""

from __future__ import annotations

from typing import Any

from pyindexnet.reference.normalization import NORMALIZATIONS
from pyindexnet.testing import SPECS, Sample

# (N, C, H, W), ratio, holistic. Widths and channels divisible by 4 take the vector kernels, the others the general ones.
_CASES = (
    ((2, 8, 8, 24), 2, False),
    ((1, 12, 9, 24), 3, False),
    ((1, 4, 8, 32), 4, False),
    ((2, 20, 8, 24), 2, True),  # five slices of channels for four warps; channel groups that are no power of two
    ((1, 8, 6, 24), 3, True),
    ((1, 40, 8, 16), 4, True),
    ((1, 36, 64, 16), 2, True),  # enough groups for chunks of channels
    ((1, 300, 2, 4), 2, True),  # more channels than a warp of groups
    ((1, 3, 5, 7), 2, True),
    ((2, 5, 7, 5), 3, False),
)


def _samples(name: str) -> tuple[Sample, ...]:
    out = []
    for number, ((n, c, height, width), r, holistic) in enumerate(_CASES):
        h, w = -(-height // r), -(-width // r)
        how = NORMALIZATIONS[(number + 3) % len(NORMALIZATIONS)]
        options: dict[str, Any] = {"ratio": r, "normalization": how}
        x = (n, c, height, width)
        if name == "indexed_upsample":
            x, options["output_size"] = (n, c, h, w), (height, width)
        kind = "holistic" if holistic else "depthwise"
        out.append(Sample(f"{n}x{c}x{height}x{width}-r{r}-{kind}-{how}", (x, (n, 1 if holistic else c, r * r, h, w)), options))
    return tuple(out)


KERNEL_SAMPLES = {name: _samples(name) for name in SPECS if name.startswith("indexed_")}
