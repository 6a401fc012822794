# SPDX-License-Identifier: Apache-2.0
"""Items: shapes, the composition equation, combination of two foregrounds, trimaps across the border of the crop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyindexnet.matting.data import RECIPES, Recipe, Strong, compose_item, draw_trimap
from tests.matting.data.pictures import blob

PLAIN = Recipe(size=32, crop_sides=(32,), flip=0, radius=(3, 3))
BACKGROUND = np.random.default_rng(9).integers(0, 256, (50, 90, 3), np.uint8)


def small(recipe: Recipe) -> Recipe:
    return replace(recipe, size=48, crop_sides=(40, 64), resize_to=56, radius=(1, 9))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_items(name: str, layers: int) -> None:
    for seed in range(6):
        item = compose_item(
            [blob(seed=k) for k in range(layers)], BACKGROUND, small(RECIPES[name]), np.random.default_rng(seed), "it"
        )
        assert set(item) == {"image", "trimap", "alpha", "foreground", "background", "name", "relabel"}
        for key, channels in (("image", 3), ("trimap", 1), ("alpha", 1), ("foreground", 3), ("background", 3)):
            assert item[key].shape == (channels, 48, 48), key
            assert item[key].dtype == torch.float32, key
            assert item[key].is_contiguous(), key
            assert item[key].min() >= 0, key
            assert item[key].max() <= 1, key
        assert item["name"] == "it"
        assert not item["relabel"]
        alpha = item["alpha"]
        composite = alpha * item["foreground"] + (1 - alpha) * item["background"]
        assert (composite - item["image"]).abs().max() <= 4 * torch.finfo(torch.float32).eps
        assert set(item["trimap"].unique().tolist()) <= {0, 0.5, 1}
        assert (item["trimap"] == 0.5).any()
        assert (alpha[item["trimap"] == 0] == 0).all()
        assert (alpha[item["trimap"] == 1] == 1).all()


def test_same_draws_same_item() -> None:
    recipe = small(RECIPES["rmat"])
    items = [compose_item([blob(), blob(seed=1)], BACKGROUND, recipe, np.random.default_rng(4)) for _ in range(2)]
    other = compose_item([blob(), blob(seed=1)], BACKGROUND, recipe, np.random.default_rng(5))
    for key in ("image", "trimap", "alpha", "foreground", "background"):
        assert torch.equal(items[0][key], items[1][key]), key
        assert not torch.equal(items[0][key], other[key]), key


def test_nothing_but_a_crop() -> None:
    colours, alpha = blob()
    item = compose_item([(colours, alpha)], BACKGROUND, PLAIN, np.random.default_rng(0))
    windows = np.lib.stride_tricks.sliding_window_view(alpha, (32, 32))
    found = np.argwhere((windows == np.rint(255 * item["alpha"][0].numpy())).all((2, 3)))
    assert len(found) == 1
    top, left = found[0]
    crop = colours[top : top + 32, left : left + 32].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    assert (item["foreground"].numpy() == crop).all()
    # The trimap is that of the whole picture: what lies outside the crop counts.
    trimap = draw_trimap(alpha, 3, 3)[top : top + 32, left : left + 32]
    assert (np.rint(item["trimap"][0].numpy() * 2) == np.array([0, 1, 2])[np.searchsorted([0, 128, 255], trimap)]).all()


def test_combination_of_two() -> None:
    front = (np.full((32, 32, 3), 200, np.uint8), np.full((32, 32), 102, np.uint8))
    back = (np.full((16, 48, 3), 100, np.uint8), np.full((16, 48), 51, np.uint8))
    back[1][:, :24] = 0
    item = compose_item([front, back], BACKGROUND, PLAIN, np.random.default_rng(0))
    right = item["alpha"][0, :, 17:]  # 16 at the border of the stretched layer is mixed
    expected = 1 - (1 - 102 / 255) * (1 - 51 / 255)
    assert (right - expected).abs().max() <= 0.5 / 255 + 1e-6
    colour = (0.4 * 200 + 0.6 * 0.2 * 100) / (0.4 + 0.6 * 0.2) / 255
    assert (item["foreground"][:, :, 17:] - colour).abs().max() <= 1e-6
    assert (item["alpha"][0, :, :15] - 0.4).abs().max() <= 1e-6
    assert (item["foreground"][:, :, :15] - 200 / 255).abs().max() <= 1e-6


def test_second_foreground_that_covers_all_is_dropped() -> None:
    front, back = blob(), (blob(seed=1)[0], np.full((60, 76), 255, np.uint8))
    with_it, without = (
        compose_item(layers, BACKGROUND, PLAIN, np.random.default_rng(0)) for layers in ([front, back], [front])
    )
    assert torch.equal(with_it["alpha"], without["alpha"])
    assert torch.equal(with_it["image"], without["image"])


def test_relabel() -> None:
    strong = Strong(foreground=0, both=0, composite=1, composite_kinds=("region", "nonlinear"))
    item = compose_item([blob()], BACKGROUND, replace(PLAIN, strong=strong), np.random.default_rng(0))
    assert item["relabel"]
    composite = item["alpha"] * item["foreground"] + (1 - item["alpha"]) * item["background"]
    assert (composite - item["image"]).abs().max() > 1 / 255


@pytest.mark.parametrize("option", ["jitter", "pull", "invert", "permute", "blur", "gamma"])
def test_each_colour_option_changes_its_part(option: str) -> None:
    plain, changed = (
        compose_item([blob()], BACKGROUND, replace(PLAIN, **{option: p}), np.random.default_rng(1)) for p in (0, 1)
    )
    assert torch.equal(plain["alpha"], changed["alpha"]) == (option != "gamma")
    assert torch.equal(plain["foreground"], changed["foreground"]) == (option == "gamma")


def test_degenerate_pictures() -> None:
    one = (np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 255, np.uint8))
    item = compose_item([one], np.zeros((1, 1, 3), np.uint8), small(RECIPES["a2u"]), np.random.default_rng(0))
    assert item["image"].isfinite().all()
    empty = (blob()[0], np.zeros((60, 76), np.uint8))
    assert compose_item([empty], BACKGROUND, PLAIN, np.random.default_rng(0))["alpha"].max() == 0


def test_errors() -> None:
    colours, alpha = blob()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^compose_item: pictures must be \(H, W, 3\), got \(60, 76\)"):
        compose_item([(alpha, alpha)], BACKGROUND, PLAIN, rng)
    with pytest.raises(ValueError, match=r"^compose_item: alpha must be \(60, 76\), got \(59, 76\)"):
        compose_item([(colours, alpha[1:])], BACKGROUND, PLAIN, rng)
    with pytest.raises(TypeError, match="^compose_item: pictures must be uint8, got float64"):
        compose_item([(colours, alpha)], BACKGROUND / 255, PLAIN, rng)
    for options, message in (
        ({"flip": 2}, r"flip must be in \[0, 1\], got 2"),
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"crop_sides": ()}, r"crop_sides must be one or more sides of 1 or more, got \(\)"),
        ({"radius": (5, 3)}, r"radius must be a range from 0 on, got \(5, 3\)"),
        ({"trimap": "cross"}, "trimap must be one of 'fractional', .* got 'cross'"),
    ):
        with pytest.raises(ValueError, match=f"^Recipe: {message}"):
            Recipe(**options)  # type: ignore[arg-type]
