# SPDX-License-Identifier: Apache-2.0
"""Affinity-aware resampling in tiles: the means and moments that make its kernels are those of the image."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyindexnet import affinity_moments
from pyindexnet.matting import predict_alpha
from pyindexnet.matting.inference import MEMORY_FORMAT, memory_plan
from pyindexnet.matting.memory import peak_bytes
from pyindexnet.matting.tile_operations import StatisticWanted, Tile, TilingError, WholeImage
from pyindexnet.matting.tiling import Tiling, make_tiles, receptive_field, run_tiles
from pyindexnet.models import create_model
from pyindexnet.nn import AffinityUpDown, AffinityUpsample
from pyindexnet.nn.map_statistics import cell_means, encoding_moments
from pyindexnet.testing.parity import tolerance
from tests.matting.pictures import photograph, trimap
from tests.matting.tiles import assert_tiles_agree, image, runner

CHANNELS = 6


class Resampled(nn.Module):
    """Paired resampling at two scales, and one upsampling of its own: statistics in a chain, and beside one another."""

    size_rule = (4, 0)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"normalize": True, "norm_groups": 3, "encoder_kernel_size": 4} | options
        self.first = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.fine, self.coarse = (AffinityUpDown(CHANNELS, **options) for _ in range(2))
        self.alone = AffinityUpsample(CHANNELS, **options)
        self.last = nn.Conv2d(CHANNELS, 1, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        full = self.first(x)
        half, _, guide = self.fine.reduce(full, keep=False)
        quarter, _, coarse_guide = self.coarse.reduce(half, keep=False)
        half = half + self.coarse.restore(quarter, coarse_guide)
        return self.last(self.fine.restore(half, guide) + self.alone(half, full))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "hybrid", "shared": False, "position_wise": True},
        {"variant": "static"},
        {"variant": "static", "normalize": False},
        {"normalize": False},
        {"shared": False, "encoder_kernel_size": 13},
        {"rank": 2, "groups": 3, "group_layout": "position_major", "encoder_kernel_size": 1},
    ],
    ids=str,
)
def test_every_variant(options: dict[str, Any]) -> None:
    """Tiles in both directions, an image of odd multiples, cells of the means that straddle tiles."""
    model = Resampled(**options)
    reach = receptive_field(model, 4, 4, MEMORY_FORMAT)
    shape = 2 * reach[0] + 8, 2 * reach[1] + 12
    assert_tiles_agree(model, image(shape[0] + 20, shape[1] + 24), shape, reach)


def test_no_overlap_runs() -> None:
    """Windows that reach beyond a tile see zeros there, as those of the kernels do; the difference is seen at the seams."""
    model = Resampled().double()
    x = image(40, 36)
    with torch.inference_mode():
        whole = runner(model)(x).numpy()
        prediction, seam = run_tiles(runner(model), x, make_tiles((40, 36), (8, 12), (0, 0)))
    assert np.isfinite(prediction).all()
    assert np.abs(prediction - whole).max() > 1e-3
    assert seam == 0  # neither tile has a pixel of the other


NETWORKS = [{}, {"downsample": False}, {"variant": "hybrid", "shared": False, "position_wise": True, "encoder_kernel_size": 6}]


def network(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return create_model("a2u_matting", width=0.0625, **options).eval()


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a2u_matting(options: dict[str, Any]) -> None:
    """As published, and ablations; tiles along a strip, as their receptive field is large."""
    model = network(options)
    _, reach = receptive_field(model, 4, 16, MEMORY_FORMAT)
    assert_tiles_agree(model, image(16, 2 * reach + 5 * 16), (16, 2 * reach + 2 * 16), (0, reach))


@pytest.mark.parametrize("options", NETWORKS[:2], ids=str)
def test_fused(options: dict[str, Any]) -> None:
    """In float32, through the public function: the image and its tiles are as far from float64."""
    model = network(options)
    fused = model.fuse()
    assert peak_bytes(fused, (1, 4, 48, 64), MEMORY_FORMAT) == peak_bytes(model, (1, 4, 48, 64), MEMORY_FORMAT)
    picture, levels = photograph(45, 1400), trimap(45, 1400, unknown=128)
    levels[:, 100:1300] = 128
    plan = memory_plan(fused, picture.shape[:2])
    limit, held = int(0.96 * plan.whole_bytes), plan.held_bytes
    tiling = Tiling(limit + 4 * 48 * 1408)  # the network's, and the prediction
    tiled = predict_alpha(fused, picture, levels, tiling=tiling)
    plan = tiling.plan
    assert plan is not None
    assert len(plan.tiles) > 1
    assert plan.overlap == plan.reach
    planned = memory_plan(fused, picture.shape[:2], tiling=Tiling(limit + held))
    assert planned.tiles == plan.tiles
    whole = predict_alpha(fused, picture, levels)
    exact = torch.from_numpy(predict_alpha(model.double(), picture, levels)).double()
    bound = tolerance(exact, float(np.abs(whole - exact.numpy()).max()), 9 * 64, torch.float32)
    assert np.abs(tiled - exact.numpy()).max() <= bound < 1 / 255
    assert tiling.seam < 1 / 255


@pytest.fixture(autouse=True)
def holds_nothing(monkeypatch) -> None:
    """Plans must not depend on what ran before."""
    monkeypatch.setattr("pyindexnet.matting.tiling.used_bytes", lambda device: 0)


# --- the statistics by themselves -------------------------------------------------------------------------------------

SIZE = 20, 28
#: Cores of unequal sizes, some of them without a pixel of some cells; the map is that of a network at stride 2.
ROWS, COLUMNS = ((0, 4), (4, 16), (16, 20)), ((0, 12), (12, 28))


def of_tiles(x: Tensor, function: Any, *arguments: Any, context: int = 8, **options: Any) -> Tensor:
    """What a network on tiles gets of a map at half the size; the first tile, after a pass over all."""

    def span(core: tuple[int, int], whole: int) -> tuple[int, int]:
        return max(core[0] - context, 0), min(core[1] + context, whole)

    tiles = [Tile(span(r, SIZE[0]), span(c, SIZE[1]), r, c) for r, c in itertools.product(ROWS, COLUMNS)]

    def run(tile: Tile) -> Tensor:
        whole.start(tile)
        rows, columns = (slice(first // 2, last // 2) for first, last in (tile.rows, tile.columns))
        return function(x[:, :, rows, columns], *arguments, **options)

    with WholeImage(SIZE) as whole:
        for tile in tiles:
            with pytest.raises(StatisticWanted):
                run(tile)
        whole.finish_pass()
        found = [run(tile) for tile in tiles]
    assert all(torch.equal(f, found[0]) for f in found)
    return found[0]


def half_size(channels: int = CHANNELS, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, channels, SIZE[0] // 2, SIZE[1] // 2, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 14])
def test_cell_means(size: int) -> None:
    x = half_size(11)
    torch.testing.assert_close(of_tiles(x, cell_means, size), cell_means(x, size), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cell_means_are_rounded_once(dtype: torch.dtype) -> None:
    x = half_size(3, dtype) + 100
    found, exact = of_tiles(x, cell_means, 5), cell_means(x.double(), 5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0.50001 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e6], ids=["centred", "large mean"])
@pytest.mark.parametrize(("kernel_size", "samples", "shared"), [(5, 2, False), (6, 1, True), (1, 2, True)])
def test_moments(kernel_size: int, samples: int, shared: bool, mean: float) -> None:
    """Windows at a border of a tile see what the image has there; deviations are merged, nothing cancels."""
    x = half_size() + mean
    u, v = torch.randn(2, samples, 1 if shared else CHANNELS, 2, kernel_size, kernel_size, dtype=torch.float64)
    expected = affinity_moments(x, u, v, groups=3, stride=2)
    found = of_tiles(x, encoding_moments, u, v, groups=3, stride=2, context=12)
    torch.testing.assert_close(found, expected, rtol=1e-9 if mean else 1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "reason"),
    [
        (cell_means, (3,), {}, "means over cells"),
        (cell_means, (0,), {}, "the mean"),
        (
            encoding_moments,
            (torch.ones(1, 1, 1, 3, 3),) * 2,
            {"groups": 1, "stride": 3},
            "the moments of encodings at stride 3",
        ),
    ],
    ids=["cells", "mean", "moments"],
)
def test_what_does_not_divide_the_tile_is_named(function: Any, arguments: Any, options: Any, reason: str) -> None:
    side = 4 if options else 3
    with WholeImage((16, 16)) as whole:
        whole.start(Tile((0, 8), (0, 8), (0, 8), (0, 8)))
        message = re.escape(f"the network takes {reason} of a map of {side} pixels, which do not divide the tile")
        with pytest.raises(TilingError, match=message):
            function(torch.ones(1, 1, side, side), *arguments, **options)


def test_blank_statistics_are_constants() -> None:
    """So that NaN reaches no farther than windows do."""
    x, u = torch.full((1, 6, 4, 4), torch.nan), torch.ones(1, 1, 2, 3, 3)
    with WholeImage((4, 4), blank=True):
        assert torch.equal(cell_means(x, 5), torch.zeros(1, 6, 6, 6))
        assert torch.equal(encoding_moments(x, u, u, groups=3, stride=2), torch.zeros(1, 3, 2, 2, 2))
