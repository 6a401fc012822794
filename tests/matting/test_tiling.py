# SPDX-License-Identifier: Apache-2.0
"""Tiles give what the whole image gives; the overlap is the receptive field; plans keep to the memory that they may use."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.matting import predict_alpha
from pyindexnet.matting.inference import MEMORY_FORMAT, SIZE_RULE, memory_plan
from pyindexnet.matting.memory import format_size, parse_size, peak_bytes
from pyindexnet.matting.tile_operations import StatisticWanted, Tile, TilingError, WholeImage
from pyindexnet.matting.tiling import Tiling, make_tiles, receptive_field, run_tiles
from pyindexnet.models import create_model
from pyindexnet.testing.parity import tolerance
from tests.matting.pictures import photograph, trimap
from tests.matting.tiles import Small, assert_tiles_agree, image, runner


def mean(x: Tensor) -> Tensor:
    return x + x.mean((2, 3), keepdim=True) + F.adaptive_avg_pool2d(x * x, 1).tanh()


def corners(x: Tensor) -> Tensor:
    small = F.avg_pool2d(x, 2)
    return F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=True)


def chained(x: Tensor) -> Tensor:
    """A mean of what depends on a mean."""
    for _ in range(2):
        x = (x - x.mean(dim=(2, 3), keepdim=True)).abs()
    return x


@pytest.mark.parametrize("middle", [mean, corners, chained, lambda x: x], ids=["mean", "corners", "chained", "local"])
def test_tiles_give_the_whole_image(middle) -> None:
    model = Small(middle)
    overlap = receptive_field(model, 4, 4, MEMORY_FORMAT)
    assert_tiles_agree(model, image(44, 60), (32, 28), overlap)


def test_less_overlap_shows_at_the_seams() -> None:
    """The check above can fail."""
    model = Small(dilation=8).double()
    x = image(16, 64)
    with torch.inference_mode():
        whole = runner(model)(x).numpy()
        prediction, seam = run_tiles(runner(model), x, make_tiles((16, 64), (16, 16), (4, 4)))
    assert np.abs(prediction - whole).max() > 1e-3
    assert seam > 1e-3


@pytest.mark.parametrize(("dilation", "expected"), [(1, 4), (3, 8), (9, 12)])
def test_receptive_field(dilation: int, expected: int) -> None:
    """1 for the last convolution, 1 for the cell of the pooling, the dilation; to the next multiple of 4."""
    assert receptive_field(Small(dilation=dilation), 4, 4, MEMORY_FORMAT) == (expected, expected)


def test_receptive_field_sees_through_zero_weights_and_dead_units() -> None:
    model = Small(dilation=9)
    nn.init.zeros_(model.first.weight)
    nn.init.constant_(model.first.bias, -1.0)
    model.middle = F.relu
    assert receptive_field(model, 4, 4, MEMORY_FORMAT) == (12, 12)


def test_receptive_field_by_axis() -> None:
    model = Small()
    model.first = nn.Conv2d(4, 6, (1, 17), padding=(0, 8))
    assert receptive_field(model, 4, 4, MEMORY_FORMAT) == (4, 12)


def test_fused_network() -> None:
    """Its kernels clip NaN, which must not hide the reach; a plan takes it for what it was; tiles differ by rounding."""
    torch.manual_seed(0)
    model = create_model("indexnet_matting", width=0.125).eval()
    fused = model.fuse()
    (multiple, _), shape = getattr(model, "size_rule", SIZE_RULE), (1, 4, 64, 96)
    _, reach = receptive_field(fused, 4, multiple, MEMORY_FORMAT)
    assert reach == receptive_field(model, 4, multiple, MEMORY_FORMAT)[1]
    assert peak_bytes(fused, shape, MEMORY_FORMAT) == peak_bytes(model, shape, MEMORY_FORMAT)
    x = image(multiple, 2 * reach + 2 * multiple).astype(np.float32)
    with torch.inference_mode():
        whole, plain = runner(fused)(x).numpy(), runner(model)(x).numpy()
        prediction, _ = run_tiles(
            runner(fused), x, make_tiles((x.shape[0], x.shape[1]), (multiple, 2 * reach + multiple), (0, reach))
        )
    assert np.abs(prediction - whole).max() <= 10 * np.abs(whole - plain).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("indexnet_matting", {"width": 0.125, "output_stride": 32}, 4),
        ("deeplabv3plus_matting", {"width": 0.125}, 4),
        ("tmfnet", {"width": 0.125}, 6),
    ],
)
def test_networks(name: str, options: dict, channels: int) -> None:
    """ASPP's image branch, aligned corners, trimap-guided pooling and the global feature; several tiles along a strip."""
    torch.manual_seed(0)
    model = create_model(name, **options).eval()
    rule = getattr(model, "size_rule", SIZE_RULE)
    _, reach = receptive_field(model, channels, rule[0], MEMORY_FORMAT)
    assert_tiles_agree(model, image(rule[0], 2 * reach + 3 * rule[0], channels), (rule[0], 2 * reach + rule[0]), (0, reach))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda x: x + F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[2:]), "pools the whole map into a grid"),
        (lambda x: x + F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True).sum(), "by a factor"),
        (lambda x: x + x.amax((2, 3), keepdim=True), "or at the whole image, in torch.Tensor.amax"),
    ],
    ids=["grid", "factor", "maximum"],
)
def test_what_cannot_run_in_tiles_is_refused(middle, reason: str) -> None:
    with pytest.raises(TilingError, match=reason):
        receptive_field(Small(middle), 4, 4, MEMORY_FORMAT)


def test_tiles_cover_the_image_once_with_their_context() -> None:
    tiles = make_tiles((40, 100), (24, 32), (8, 8))
    covered = np.zeros((40, 100), int)
    for tile in tiles:
        assert tile.shape == (24, 32)
        covered[slice(*tile.core_rows), slice(*tile.core_columns)] += 1
        for span, core, side in ((tile.rows, tile.core_rows, 40), (tile.columns, tile.core_columns, 100)):
            assert core[0] - span[0] >= 8 or core[0] == 0 == span[0]
            assert span[1] - core[1] >= 8 or core[1] == side == span[1]
    assert (covered == 1).all()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_peak_bytes_by_hand() -> None:
    """In the pooling: for each pixel an input of 4 values, a map of 6, and a quarter of 6 maxima and their 8-byte indices."""
    pixels = 32 * 48
    expected = pixels * (4 + 6) * 4 + pixels // 4 * 6 * (4 + 8)
    assert peak_bytes(Small(), (1, 4, 32, 48), torch.contiguous_format) == expected


def test_predict_alpha_in_tiles() -> None:
    """Through the public function: within rounding of the whole image, the plan and the seam reported."""
    model = Small(mean)
    picture, levels = photograph(), trimap()
    whole = predict_alpha(model, picture, levels, align="pad")
    tiling = Tiling(int(0.6 * memory_plan(model, picture.shape[:2]).whole_bytes))
    tiled = predict_alpha(model, picture, levels, align="pad", tiling=tiling)
    assert tiling.plan is not None
    assert len(tiling.plan.tiles) > 1
    assert tiling.plan.overlap == tiling.plan.reach
    exact = predict_alpha(copy.deepcopy(model).double(), picture, levels, align="pad")
    bound = tolerance(torch.from_numpy(exact).double(), float(np.abs(whole - exact).max()), 4 * 9 + 6 * 9, torch.float32)
    assert np.abs(tiled - exact).max() <= bound
    assert tiling.seam <= 2 * bound < 1 / 255


@pytest.fixture(autouse=True)
def holds_nothing(monkeypatch) -> None:
    """Plans must not depend on what ran before."""
    monkeypatch.setattr("pyindexnet.matting.tiling.used_bytes", lambda device: 0)


def test_plan() -> None:
    model = Small(dilation=9)
    whole = memory_plan(model, (400, 600))
    assert len(whole.tiles) == 1
    assert str(whole).endswith("in one piece")
    assert whole.reach is None
    limit = whole.held_bytes + whole.whole_bytes // 3
    plan = memory_plan(model, (400, 600), tiling=Tiling(limit))
    assert plan.tile_bytes + plan.held_bytes <= limit
    assert plan.overlap == plan.reach == (12, 12)
    assert f"{format_size(plan.whole_bytes + plan.held_bytes)}; " in str(plan)
    assert f"overlap 12 x 12, {plan.share:.2f} times the pixels" in str(plan)
    less = memory_plan(model, (400, 600), tiling=Tiling(limit, overlap=5))
    assert less.overlap == (8, 8)
    assert "less than the receptive field (12 x 12): not exact" in str(less)


def test_plan_errors() -> None:
    model = Small(dilation=9)
    with pytest.raises(TilingError, match=r"^max_memory must be at least \d+ MiB for tiles with an overlap of 12 x 12"):
        memory_plan(model, (400, 600), tiling=Tiling(2**20))
    model.size_rule = (4, 1)
    with pytest.raises(TilingError, match=r"^the network takes sizes of 4 n \+ 1, which cannot be divided into tiles$"):
        memory_plan(model, (400, 600), tiling=Tiling(2**20))
    with pytest.raises(ValueError, match="^Tiling: max_memory must be at least 1 byte, got 0$"):
        Tiling(0)
    with pytest.raises(ValueError, match="^Tiling: overlap must be at least 0 pixels, got -1$"):
        Tiling(1, overlap=-1)


def test_a_minimum_is_rounded_up_and_what_is_less_down() -> None:
    assert [format_size(1.24 * 2**30, how) for how in (round, math.ceil, math.floor)] == ["1.2 GiB", "1.3 GiB", "1.2 GiB"]
    assert [format_size(310.5 * 2**20, how) for how in (math.ceil, math.floor)] == ["311 MiB", "310 MiB"]
    model = Small(dilation=9)
    with pytest.raises(TilingError) as refused:
        memory_plan(model, (400, 600), tiling=Tiling(2**20))
    least = parse_size(re.search("at least (.*) for", str(refused.value))[1])
    assert len(memory_plan(model, (400, 600), tiling=Tiling(least)).tiles) > 1


def test_one_pixel_of_a_tile_is_not_the_mean_of_the_image() -> None:
    one = torch.full((1, 2, 1, 1), 3.0)
    with WholeImage((8, 8)) as whole:
        assert torch.equal(one.mean((2, 3), keepdim=True), one)
        for columns in ((0, 4), (4, 8)):
            whole.start(Tile((0, 8), columns, (0, 8), columns))
            with pytest.raises(StatisticWanted):
                torch.full((1, 2, 1, 1), float(columns[0])).mean((2, 3), keepdim=True)
        whole.finish_pass()
        whole.start(Tile((0, 8), (0, 4), (0, 8), (0, 4)))
        mean = one.mean((2, 3), keepdim=True)
        assert torch.equal(mean, torch.full((1, 2, 1, 1), 2.0))
        assert torch.equal((2 * mean).mean((2, 3)), torch.full((1, 2), 4.0))  # of what is the whole map, no other pass
        with pytest.raises(StatisticWanted):
            (one * mean).mean((2, 3))


@pytest.mark.parametrize(("text", "size"), [("6GiB", 6 * 2**30), ("512M", 2**29), (" 1.5 g ", 3 * 2**29), ("1000000", 10**6)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "6 apples", "-1G", "0", "GiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="^size must be a number with K, M, G or T, such as 6GiB, got"):
        parse_size(text)


def test_the_mode_is_off_outside() -> None:
    with WholeImage((8, 8)):
        pass
    assert torch.equal(torch.ones(1, 2, 4, 4).mean((2, 3)), torch.ones(1, 2))
