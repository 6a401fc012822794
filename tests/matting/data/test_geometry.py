# SPDX-License-Identifier: Apache-2.0
"""The one warp: exact where it moves whole pixels, the crop around its seed, shrinking without skipped pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pyindexnet.matting.data.geometry import Frame, affine, cover_factor, crop_around, scaling, seed_pixel, translation, warp
from tests.matting.data.pictures import blob


def test_whole_pixels() -> None:
    colours, _ = blob(20, 20)
    assert (warp(colours, Frame(np.eye(3), 20)) == colours).all()
    moved = warp(colours, Frame(translation(-3, -5), 10))
    assert (moved == colours[5:15, 3:13]).all()
    flipped = warp(colours, Frame(translation(20, 0) @ scaling(-1, 1), 20))
    assert (flipped == colours[:, ::-1]).all()
    turned = warp(colours, Frame(translation(20, 0) @ affine(90, 1, 0), 20))
    assert (turned == np.rot90(colours, -1)).all()
    doubled = warp(colours, Frame(scaling(2, 2), 40), interpolation=cv2.INTER_NEAREST)
    assert (doubled[::2, ::2] == colours).all()


def test_margin_and_stretched_layers() -> None:
    _, alpha = blob(40, 60)
    frame = Frame(translation(-10, -4) @ affine(20, 0.9, 5), 24)
    assert np.abs(warp(alpha, frame.grown(6))[6:-6, 6:-6].astype(int) - warp(alpha, frame)).max() <= 1
    half = cv2.resize(alpha, (30, 20), interpolation=cv2.INTER_AREA)
    stretched = warp(half, frame.of_resized((40, 60), (20, 30)))
    assert np.abs(stretched.astype(int) - warp(alpha, frame)).mean() < 8  # the same object, more softly


def test_borders() -> None:
    white = np.full((8, 8), 255, np.uint8)
    outside = Frame(translation(4, 0), 8)
    assert (warp(white, outside)[:, :4] == 0).all()
    assert (warp(white, outside, border=cv2.BORDER_REPLICATE) == 255).all()


@pytest.mark.parametrize("shrink", [2, 3, 5])
def test_shrinking_averages(shrink: int) -> None:
    # A pattern of single pixels keeps its mean, where sampling alone would take all of them or none.
    lines = np.zeros((60, 60), np.float32)
    lines[:, ::shrink] = 1
    found = warp(lines, Frame(scaling(1 / shrink, 1 / shrink), 60 // shrink))
    assert np.abs(found[1:-1, 1:-1] - 1 / shrink).max() < 1e-5


def test_crop_keeps_its_seed_in_the_middle() -> None:
    linear = affine(15, 1.1, 5)
    frame = crop_around(linear, (150, 130), (300, 320), 64)
    assert np.allclose(frame.matrix @ (150, 130, 1), (32, 32, 1))
    assert np.allclose(frame.matrix[:2, :2], linear[:2, :2])


def test_crop_stays_inside() -> None:
    # A seed in a corner: the crop is moved, so that no side of it is empty.
    for seed in ((0.5, 0.5), (99.5, 0.5), (0.5, 79.5), (99.5, 79.5)):
        frame = crop_around(np.eye(3), seed, (80, 100), 64)
        assert (warp(np.full((80, 100), 255, np.uint8), frame) == 255).all()
        assert ((frame.matrix @ (*seed, 1))[:2] >= 0).all()
    # A picture smaller than the crop is centred.
    assert (crop_around(np.eye(3), (3, 3), (10, 30), 64).matrix[:2, 2] == (17, 27)).all()


def test_seeds_lie_on_the_edge_of_the_object() -> None:
    rng = np.random.default_rng(0)
    _, alpha = blob()
    values = {int(alpha[int(y), int(x)]) for x, y in (seed_pixel(alpha, rng) for _ in range(50))}
    assert values <= set(range(1, 255))
    assert len(values) > 5
    # Pixels of a fine structure that a coarse grid misses are found.
    large = np.zeros((1200, 1100), np.uint8)
    large[701, 333] = 100
    assert seed_pixel(large, rng) == (333, 701)
    large[701, 333] = 255
    assert seed_pixel(large, rng) == (333, 701)
    x, y = seed_pixel(np.zeros((7, 9), np.uint8), rng)
    assert 0 <= x < 9
    assert 0 <= y < 7


def test_cover() -> None:
    for linear in (np.eye(3), affine(30, 0.5, 10)):
        factor = cover_factor(linear, (40, 70), 64)
        corners = scaling(factor, factor) @ linear @ np.array([[0, 70, 0, 70], [0, 0, 40, 40], [1, 1, 1, 1]])
        assert np.ptp(corners[:2], axis=1).min() == pytest.approx(64)
    assert cover_factor(np.eye(3), (40, 70), 64) == 64 / 40
