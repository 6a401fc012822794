# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for the GPUs that we support, on a machine without one, and keeps its values in registers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from pyindexnet.kernels import (
    affinity_downsample,
    affinity_upsample,
    dynamic_downsample,
    dynamic_upsample,
    grouped_spatial_fusion,
    indexed_pool,
    indexed_pool_skip,
    indexed_upsample,
    non_background_pool,
)
from pyindexnet.ops import _common

from . import aot

pytestmark = pytest.mark.skipif(_common.TRITON_INTERPRETED, reason="the interpreter replaces the compiler")

CAPABILITIES = (80, 90, 100)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Indexed:
    """Inputs of the indexed operators on the meta device."""

    ratio: int = 2
    how: str = "sigmoid_softmax"
    holistic: bool = False
    channels_last: bool = False
    height: int = 224

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x of the high resolution, x of the low resolution, logits)."""
        size = -(-self.height // self.ratio)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        ci = 1 if self.holistic else 64
        high = torch.empty(2, 64, self.height, self.height, dtype=dtype, device="meta").to(memory_format=layout)
        low = torch.empty(2, 64, size, size, dtype=dtype, device="meta").to(memory_format=layout)
        # Position-major, as a merged convolution gives them.
        merged = torch.empty(2, self.ratio**2 * ci, size, size, dtype=dtype, device="meta").to(memory_format=layout)
        return high, low, merged.unflatten(1, (-1, ci)).transpose(1, 2)

    def __str__(self) -> str:
        kind = "holistic" if self.holistic else "depthwise"
        return f"r{self.ratio}-{self.height}-{self.how}-{kind}-{'channels_last' if self.channels_last else 'contiguous'}"


def _pool(s: Indexed, dtype: torch.dtype) -> list[aot.Launch]:
    x, low, logits = s.tensors(dtype)
    back = aot.launches(indexed_pool.indexed_pool_backward, low, x, logits, s.ratio, s.how, True, True)
    return aot.launches(indexed_pool.indexed_pool, x, logits, s.ratio, s.how) + back


def _pool_skip(s: Indexed, dtype: torch.dtype) -> list[aot.Launch]:
    x, low, logits = s.tensors(dtype)
    back = aot.launches(indexed_pool_skip.indexed_pool_skip_backward, low, x, x, logits, s.ratio, s.how, True, True)
    return aot.launches(indexed_pool_skip.indexed_pool_skip, x, logits, s.ratio, s.how) + back


def _upsample(s: Indexed, dtype: torch.dtype) -> list[aot.Launch]:
    high, x, logits = s.tensors(dtype)
    back = aot.launches(indexed_upsample.indexed_upsample_backward, high, x, logits, s.ratio, s.how, True, True)
    return aot.launches(indexed_upsample.indexed_upsample, x, logits, s.ratio, s.how, *high.shape[2:]) + back


@dataclass(frozen=True)
class Pooling:
    """Inputs of the non-background pooling of TMP on the meta device."""

    channels_last: bool = False
    sizes: tuple[int, ...] = (31, 17, 11, 5)
    width: int = 64
    include_pad: bool = False

    def __str__(self) -> str:
        return f"{'_'.join(map(str, self.sizes))}-{self.width}-{'channels_last' if self.channels_last else 'contiguous'}"


def _non_background(s: Pooling, dtype: torch.dtype) -> list[aot.Launch]:
    layout = torch.channels_last if s.channels_last else torch.contiguous_format
    x = torch.empty(2, 64, 64, s.width, dtype=dtype, device="meta").to(memory_format=layout)
    mask = torch.empty(2, 1, 64, s.width, dtype=dtype, device="meta")
    options = (s.sizes, 1e-6, s.include_pad)
    back = aot.launches(non_background_pool.non_background_pool_backward, x, x, mask, *options, True, True)
    only_x = aot.launches(non_background_pool.non_background_pool_backward, x, x, mask, *options, True, False)
    return aot.launches(non_background_pool.non_background_pool, x, mask, *options) + back + only_x


@dataclass(frozen=True)
class Dynamic:
    """Inputs of the dynamic-kernel operators on the meta device."""

    kernel_size: int = 3
    how: str = "softmax"
    groups: int = 1
    channels_last: bool = False
    size: int = 64

    def tensor(self, channels: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(2, channels, size, size, dtype=dtype, device="meta").to(memory_format=layout)

    @property
    def taps(self) -> int:
        return self.groups * self.kernel_size**2

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"k{self.kernel_size}-g{self.groups}-{self.size}-{self.how}-{layout}"


def _dynamic_up(s: Dynamic, dtype: torch.dtype) -> list[aot.Launch]:
    x, y, logits = s.tensor(64, s.size, dtype), s.tensor(64, 2 * s.size, dtype), s.tensor(4 * s.taps, s.size, dtype)
    options = (s.kernel_size, s.groups, 2, s.how, False, 2 * s.size, 2 * s.size)
    back = aot.launches(dynamic_upsample.dynamic_upsample_backward, y, x, logits, *options, True, True)
    return aot.launches(dynamic_upsample.dynamic_upsample, x, logits, *options) + back


def _dynamic_down(s: Dynamic, dtype: torch.dtype) -> list[aot.Launch]:
    x, y, logits = s.tensor(64, 2 * s.size, dtype), s.tensor(64, s.size, dtype), s.tensor(s.taps, s.size, dtype)
    options = (s.kernel_size, s.groups, 2, s.how)
    back = aot.launches(dynamic_downsample.dynamic_downsample_backward, y, x, logits, *options, True, True)
    return aot.launches(dynamic_downsample.dynamic_downsample, x, logits, *options) + back


def _fusion(s: Dynamic, dtype: torch.dtype) -> list[aot.Launch]:
    x, kernels = s.tensor(64, s.size, dtype), s.tensor(s.taps, s.size, dtype)
    options = (s.kernel_size, s.groups, "interleaved")
    back = aot.launches(grouped_spatial_fusion.grouped_spatial_fusion_backward, x, x, kernels, *options, True, True)
    return aot.launches(grouped_spatial_fusion.grouped_spatial_fusion, x, kernels, *options) + back


@dataclass(frozen=True)
class Affine(Dynamic):
    """Inputs of the affinity-aware operators on the meta device, a generator for all samples."""

    rank: int = 1

    def generator(self, subs: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(1, self.rank, self.taps * subs, dtype=dtype, device="meta")

    def __str__(self) -> str:
        return f"d{self.rank}-{super().__str__()}"


def _affinity_up(s: Affine, dtype: torch.dtype) -> list[aot.Launch]:
    x, y, a = s.tensor(64, s.size, dtype), s.tensor(64, 2 * s.size, dtype), s.tensor(s.rank, s.size, dtype)
    p, options = s.generator(4, dtype), (s.kernel_size, s.groups, 2, s.how, 2 * s.size, 2 * s.size)
    back = aot.launches(affinity_upsample.affinity_upsample_backward, y, x, a, p, *options, True, True, True)
    return aot.launches(affinity_upsample.affinity_upsample, x, a, p, *options) + back


def _affinity_down(s: Affine, dtype: torch.dtype) -> list[aot.Launch]:
    x, y, a = s.tensor(64, 2 * s.size, dtype), s.tensor(64, s.size, dtype), s.tensor(s.rank, s.size, dtype)
    p, options = s.generator(1, dtype), (s.kernel_size, s.groups, 2, s.how)
    back = aot.launches(affinity_downsample.affinity_downsample_backward, y, x, a, p, *options, True, True, True)
    return aot.launches(affinity_downsample.affinity_downsample, x, a, p, *options) + back


_LAYOUTS = [Indexed(holistic=a, channels_last=b) for a, b in itertools.product((False, True), repeat=2)]
_OTHER_RATIOS = [Indexed(ratio=r, channels_last=b) for r in (3, 4) for b in (False, True)]
_HOWS = [Indexed(how=how) for how in ("none", "sigmoid", "softmax", "softmax_sigmoid")]
_ODD = [Indexed(height=223), Indexed(ratio=4, height=223, holistic=True)]

#: (name, launches for a case and a dtype, their number, cases for all targets, cases for one): a new kernel joins with a line.
KERNELS: tuple[tuple[str, Callable[[Any, torch.dtype], list[aot.Launch]], int, list[Any], list[Any]], ...] = (
    ("indexed_pool", _pool, 2, _LAYOUTS, [*_OTHER_RATIOS, *_HOWS, *_ODD]),
    ("indexed_pool_skip", _pool_skip, 2, _LAYOUTS, _OTHER_RATIOS),
    ("indexed_upsample", _upsample, 2, _LAYOUTS, _OTHER_RATIOS),
    # All windows forward are one launch; backward is one, and one more for the gradient of the mask.
    (
        "non_background_pool",
        _non_background,
        4,
        [Pooling(b) for b in (False, True)],
        [Pooling(sizes=(5,), width=63, include_pad=True)],
    ),
    # One launch forward; backward one for the gradient of the kernels and one for that of x.
    ("grouped_spatial_fusion", _fusion, 3, [Dynamic(groups=4, how="none", channels_last=b) for b in (False, True)], []),
    (
        "dynamic_upsample",
        _dynamic_up,
        3,
        [Dynamic(channels_last=b) for b in (False, True)],
        [Dynamic(5, "sigmoid_softmax"), Dynamic(7, "softmax_sigmoid", 4, size=63), Dynamic(1, "sigmoid")],
    ),
    (
        "affinity_upsample",
        _affinity_up,
        3,
        [Affine(how="sigmoid_softmax")],
        [Affine(5, "sigmoid_softmax", channels_last=True, rank=4), Affine(7, "softmax_sigmoid", 4, size=63, rank=2)],
    ),
    ("affinity_downsample", _affinity_down, 3, [Affine(6, "softmax")], [Affine(14, "sigmoid_softmax", 2, True, rank=16)]),
    ("dynamic_downsample", _dynamic_down, 3, [Dynamic(6, "softmax")], [Dynamic(14, "sigmoid_softmax", 2, True)]),
)


def _cases() -> list[Any]:
    cases = []
    for name, launches, count, everywhere, once in KERNELS:
        for case in everywhere:
            for capability, dtype in itertools.product(CAPABILITIES, ("float32", "bfloat16")):
                cases.append(
                    pytest.param(launches, count, case, dtype, capability, id=f"{name}-{case}-{dtype}-sm_{capability}")
                )
        for case in once:
            cases.append(pytest.param(launches, count, case, "float32", 90, id=f"{name}-{case}-float32-sm_90"))
        cases.append(pytest.param(launches, count, everywhere[0], "float64", 90, id=f"{name}-{everywhere[0]}-float64-sm_90"))
    return cases


@pytest.mark.parametrize(("launches", "count", "case", "dtype", "capability"), _cases())
def test_compiles_without_spills(
    launches: Callable[[Any, torch.dtype], list[aot.Launch]],
    count: int,
    case: Any,
    dtype: str,
    capability: int,
    record_property: Callable[[str, Any], None],
) -> None:
    found = launches(case, DTYPES[dtype])
    assert len(found) == count
    for number, launch in enumerate(found):
        compiled = aot.compile_launch(launch, capability)
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        used = aot.resources(compiled)
        record_property(f"registers {number}", used.registers)
        print(f"launch {number}: {used}")  # shown by pytest -rP
        assert used.local_bytes == 0, f"launch {number} spills: {used}"
