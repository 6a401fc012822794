# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the indexed operators: what their tiles, pointers and masks could get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from pyindexnet.kernels import index_cell_launch, indexed_pool, indexed_pool_skip, indexed_upsample
from pyindexnet.ops import _common
from pyindexnet.reference import NORMALIZATIONS
from pyindexnet.testing import LAYOUTS, SPECS, OpSpec, Sample, measure

# In the interpreter these run on the CPU; otherwise they are tests of the GPU.
pytestmark = [] if _common.TRITON_INTERPRETED else pytest.mark.gpu

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sample(
    name: str, size: tuple[int, int, int, int], ratio: int = 2, how: str = "sigmoid_softmax", holistic: bool = False
) -> Sample:
    """``size``: (N, C, H, W) of the high-resolution side."""
    n, c, height, width = size
    h, w = -(-height // ratio), -(-width // ratio)
    options: dict[str, Any] = {"ratio": ratio, "normalization": how}
    x = size
    if name == "indexed_upsample":
        options["output_size"], x = (height, width), (n, c, h, w)
    return Sample(f"{size}-r{ratio}-{how}-{holistic}", (x, (n, 1 if holistic else c, ratio * ratio, h, w)), options)


def check(spec: OpSpec, s: Sample, device: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> None:
    wrong = [str(m) for m in measure(spec, s, "_triton", dtype, device, layout) if not m.ok]
    assert not wrong, "\n".join([f"{spec.name} {s.id} triton {device}", *wrong])


@pytest.fixture
def device() -> str:
    return "cpu" if _common.TRITON_INTERPRETED else "cuda"


@pytest.fixture(params=[name for name in SPECS if name.startswith("indexed_")])
def spec(request: pytest.FixtureRequest) -> OpSpec:
    return SPECS[request.param]


@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_absent_positions(spec: OpSpec, ratio: int, how: str, holistic: bool, device: str) -> None:
    check(spec, sample(spec.name, (2, 3, 2 * ratio - 1, 3 * ratio + 1), ratio, how, holistic), device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_and_strides(spec: OpSpec, dtype: torch.dtype, layout: str, device: str) -> None:
    check(spec, sample(spec.name, (2, 5, 7, 9)), device, dtype, layout)


def _boundaries() -> Iterator[Any]:
    """One below, at and one above each block size of the tiles in use."""
    for ratio in (2, 3, 4):
        lanes, _ = index_cell_launch._TILES[False][ratio]
        for cells in (lanes - 1, lanes, lanes + 1) if ratio == 2 else (lanes + 1,):
            yield pytest.param("contiguous", ratio, False, 1, cells, id=f"contiguous-r{ratio}-{cells}-cells")
    lanes, _ = index_cell_launch._TILES[False][2]
    summed, shared = index_cell_launch._SUM_BLOCK_P, index_cell_launch._SHARED
    for d in (-1, 0, 1):
        yield pytest.param("contiguous", 2, True, 2, summed + d, id=f"holistic-{summed + d}-cells")
        channels = lanes // summed + d
        yield pytest.param("contiguous", 2, True, channels, summed, id=f"holistic-{channels}-channels")
        yield pytest.param("contiguous", 2, True, shared + d, 3, id=f"holistic-shared-{shared + d}-channels")
    lanes, _ = index_cell_launch._TILES[True][2]
    most = index_cell_launch._MAX_BLOCK_C
    for d in (-1, 0, 1):
        for holistic in (False, True):
            kind = "holistic" if holistic else "depthwise"
            cells = lanes // most + d
            yield pytest.param("channels_last", 2, holistic, most, cells, id=f"channels_last-{kind}-{cells}-cells")
            yield pytest.param("channels_last", 2, holistic, most + d, 3, id=f"channels_last-{kind}-{most + d}-channels")


@pytest.mark.parametrize(("layout", "ratio", "holistic", "channels", "cells"), list(_boundaries()))
def test_block_boundaries(
    spec: OpSpec, layout: str, ratio: int, holistic: bool, channels: int, cells: int, device: str
) -> None:
    # One row of cells, the last cut to its first column.
    size = (1, channels, ratio, cells * ratio - ratio + 1)
    check(spec, sample(spec.name, size, ratio, holistic=holistic), device, layout=layout)


def call_all(x: torch.Tensor, low: torch.Tensor, logits: torch.Tensor, how: str, need: tuple[bool, bool]) -> list[torch.Tensor]:
    """All outputs of all six launchers, ratio 2; ``x`` and ``low`` serve as inputs and as gradients."""
    outputs = (
        indexed_pool.indexed_pool(x, logits, 2, how),
        indexed_pool.indexed_pool_backward(low, x, logits, 2, how, *need),
        indexed_pool_skip.indexed_pool_skip(x, logits, 2, how),
        indexed_pool_skip.indexed_pool_skip_backward(low, x, x, logits, 2, how, *need),
        indexed_upsample.indexed_upsample(low, logits, 2, how, *x.shape[2:]),
        indexed_upsample.indexed_upsample_backward(x, low, logits, 2, how, *need),
    )
    return [t for out in outputs for t in ((out,) if isinstance(out, torch.Tensor) else out)]


NAMES = ("y", "pool grad x", "pool grad logits", "pooled", "skip", "skip grad x", "skip grad logits")
NAMES += ("up", "up grad x", "up grad logits")


@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_nothing_outside_the_image_leaks(how: str, holistic: bool, channels_last: bool, device: str) -> None:
    """NaN beyond the borders of x and in the logits of absent positions changes no bit; their gradient is 0."""
    n, c, height, width = 2, 3, 5, 7
    h, w = 3, 4
    layout = torch.channels_last if channels_last else torch.contiguous_format
    wide = torch.full((n, c, 2 * h, 2 * w), torch.nan, device=device).to(memory_format=layout)
    x = wide[:, :, :height, :width]
    x.copy_(torch.randn(x.shape))
    low = torch.randn(n, c, h, w, device=device).to(memory_format=layout)
    clean = torch.randn(n, 1 if holistic else c, 4, h, w, device=device)
    absent = torch.zeros(4, h, w, dtype=torch.bool, device=device)
    absent[2:, -1] = True
    absent[1::2, :, -1] = True
    both = (True, True)
    got = call_all(x, low, clean.masked_fill(absent, torch.nan), how, both)
    want = call_all(x.clone(memory_format=layout), low, clean, how, both)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert torch.equal(a, b), name
        assert a.isfinite().all(), name
        if name.endswith("grad logits"):
            assert (a[:, :, absent] == 0).all(), name


@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_gradient_of_absent_positions_is_zero(how: str, holistic: bool, device: str) -> None:
    """Also where the gradient that comes in is infinite: inf * 0 must not come out."""
    x, low = torch.randn(1, 2, 3, 5, device=device), torch.full((1, 2, 2, 3), torch.inf, device=device)
    logits = torch.randn(1, 1 if holistic else 2, 4, 2, 3, device=device)
    for name, t in zip(NAMES, call_all(x, low, logits, how, (True, True)), strict=True):
        if name.endswith("grad logits"):
            assert (t[:, :, 2:, -1] == 0).all(), name
            assert (t[:, :, 1::2, :, -1] == 0).all(), name


@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)], ids=["x", "logits", "none"])
def test_backward_gives_what_is_needed(need: tuple[bool, bool], holistic: bool, device: str) -> None:
    x, low = torch.randn(2, 3, 6, 5, device=device), torch.randn(2, 3, 3, 3, device=device)
    logits = torch.randn(2, 1 if holistic else 3, 4, 3, 3, device=device)
    got, want = (call_all(x, low, logits, "sigmoid_softmax", n) for n in (need, (True, True)))
    for name, a, b in zip(NAMES, got, want, strict=True):
        dropped = (name.endswith("grad x") and not need[0]) or (name.endswith("grad logits") and not need[1])
        assert a.shape == (0,) if dropped else torch.equal(a, b), name


def test_empty_batch(device: str) -> None:
    tensors = [torch.empty(0, *s, device=device) for s in ((3, 6, 5), (3, 3, 3), (3, 4, 3, 3))]
    shapes = [t.shape for t in call_all(*tensors, "softmax", (True, True))]
    high, low, logits = (0, 3, 6, 5), (0, 3, 3, 3), (0, 3, 4, 3, 3)
    assert shapes == [low, high, logits, low, high, high, logits, high, low, logits]


@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
def test_offsets_beyond_32_bits(holistic: bool, device: str) -> None:
    """Strides that fit into 32 bits, offsets that do not, in storage of which only a few pages are ever touched."""
    gap = 2**30
    size = 3 * gap + 128
    storage = (
        torch.from_numpy(np.empty(size, np.float16)) if device == "cpu" else torch.empty(size, dtype=torch.half, device=device)
    )
    x = storage.as_strided((1, 3, 4, 4), (0, gap, 4, 1))
    low = storage.as_strided((1, 3, 2, 2), (0, gap, 2, 1), 16)
    logits = storage.as_strided((1, 1 if holistic else 3, 4, 2, 2), (0, 16, gap, 2, 1), 32)
    tensors = [t.copy_(torch.randn(t.shape)) for t in (x, low, logits)]
    need = (True, True)
    got = call_all(*tensors, "softmax", need)
    want = call_all(*(t.clone(memory_format=torch.contiguous_format) for t in tensors), "softmax", need)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert torch.equal(a, b), name


def test_wide_offsets_only_where_needed() -> None:
    image = torch.empty(4, 8, 2**13, 2**13, device="meta")  # 2^29 elements per image, 2^31 in all
    assert not index_cell_launch.is_wide(image)
    assert index_cell_launch.is_wide(torch.empty(1, 16, 2**13, 2**13 + 16, device="meta"))
    assert not index_cell_launch.is_wide(torch.empty(1, 1, 1, 1, device="meta").expand(1, 16, 2**14, 2**14))
