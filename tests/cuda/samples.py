# SPDX-License-Identifier: Apache-2.0
"""Samples that reach every CUDA kernel: vectors along rows and channels, partial warps and blocks, chunks and slices."""

from __future__ import annotations

from typing import Any

from pyindexnet.reference.normalization import NORMALIZATIONS
from pyindexnet.testing import SPECS, Sample
from pyindexnet.testing.affinity_specs import AFFINITY_SPECS
from pyindexnet.testing.window_specs import WINDOW_SPECS

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


# (N, C, H, W), windows: one tile and many, planes at a time, groups of channels, windows beyond shared memory.
_POOL_CASES: tuple[tuple[tuple[int, int, int, int], tuple[int, ...]], ...] = (
    ((2, 12, 9, 20), (5, 3)),
    ((1, 20, 34, 37), (31, 17, 11, 5)),
    ((1, 3, 70, 40), (9,)),
    ((1, 2, 120, 118), (201, 5)),
)


def _pool_samples() -> tuple[Sample, ...]:
    out = []
    for (n, c, height, width), sizes in _POOL_CASES:
        shapes = ((n, c, height, width), (n, 1, height, width))
        options = {"kernel_size": sizes, "eps": 1e-6, "count_include_pad": False}
        out.append(Sample(f"{n}x{c}x{height}x{width}-k{'_'.join(map(str, sizes))}", shapes, options, smooth=False))
    return tuple(out)


KERNEL_SAMPLES = {name: _samples(name) for name in SPECS if name.startswith("indexed_")}
KERNEL_SAMPLES["non_background_pool"] = _pool_samples()


# More cells than a tile, and sizes that leave tiles, warps and chunks of channels partly empty.
def _window_sample(name: str) -> Sample:
    n, c, h, w, k, groups = 1, 18, 9, 17, 3, 2
    options: dict[str, Any] = {"kernel_size": k, "groups": groups}
    if name == "grouped_spatial_fusion":
        return Sample("tiles", ((n, c, h, w), (n, groups * k * k, h, w)), options | {"group_order": "blocked"})
    options |= {"scale": 2, "normalization": "softmax"}
    if name == "dynamic_downsample":
        return Sample("tiles", ((n, c, 2 * h - 1, 2 * w), (n, groups * k * k, h, w)), options)
    return Sample("tiles", ((n, c, h, w), (n, groups * k * k * 4, h, w)), options | {"layout": "shuffled"})


def _affinity_sample(name: str) -> Sample:
    """Two samples that share a generator of rank 3."""
    n, c, h, w, k, groups, rank = 2, 6, 9, 17, 3, 2, 3
    scale = 2 if name == "affinity_upsample" else 1
    options = {"kernel_size": k, "groups": groups, "scale": 2, "normalization": "sigmoid_softmax"}
    x = (n, c, h, w) if scale == 2 else (n, c, 2 * h - 1, 2 * w)
    return Sample("tiles", (x, (n, rank, h, w), (1, rank, groups * k * k * scale * scale)), options)


for _name in AFFINITY_SPECS:
    KERNEL_SAMPLES[_name] = (_affinity_sample(_name), *AFFINITY_SPECS[_name].samples[2:4])
for _name in WINDOW_SPECS:
    # With two of its tests': under the thread sanitizer a sample takes seconds.
    KERNEL_SAMPLES[_name] = (_window_sample(_name), *WINDOW_SPECS[_name].samples[2:4])
