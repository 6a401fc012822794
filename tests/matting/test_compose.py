# SPDX-License-Identifier: Apache-2.0
"""Composites and backgrounds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pyindexnet.matting import Background, composite, write_pictures
from pyindexnet.matting.compose import cover, parse_colour
from tests.matting.pictures import photograph


def test_composite_blends():
    image = np.full((1, 3, 3), 255, np.uint8)
    alpha = np.array([[0, 0.25, 1]], np.float32)
    background = np.array([0.5, 0, 1], np.float32)
    blended = composite(image, alpha, background)
    assert np.allclose(blended[0], [[0.5, 0, 1], [0.625, 0.25, 1], [1, 1, 1]], rtol=0, atol=np.finfo(np.float32).eps)


def test_composite_keeps_the_image_where_alpha_is_one():
    image = photograph(dtype=np.uint16)
    blended = composite(image, np.ones(image.shape[:2], np.float32), np.zeros(3))
    assert np.array_equal(np.rint(blended * 65535).astype(np.uint16), image)


def test_composite_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"alpha must be \(45, 60\), got \(4, 5\)"):
        composite(photograph(), np.zeros((4, 5)), np.zeros(3))
    with pytest.raises(ValueError, match=r"background must be \(45, 60, 3\) or \(3,\), got \(45, 61, 3\)"):
        composite(photograph(), np.zeros((45, 60)), np.zeros((45, 61, 3)))


@pytest.mark.parametrize(
    ("text", "rgb"),
    [
        ("white", (255, 255, 255)),
        ("#ff8800", (255, 136, 0)),
        ("#f80", (255, 136, 0)),
        ("255,136,0", (255, 136, 0)),
        (" 1, 2, 3 ", (1, 2, 3)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
    ],
)
def test_colours(text, rgb):
    assert np.array_equal(np.rint(parse_colour(text) * 255), rgb)


@pytest.mark.parametrize("text", ["nowhere.png", "256,0,0", "1,2", "#12", ""])
def test_neither_picture_nor_colour(text):
    with pytest.raises(ValueError, match="must be an existing picture or a colour, got"):
        Background(text)


@pytest.mark.parametrize("size", [(20, 30), (45, 60), (45, 20), (200, 100), (1, 1)], ids=str)
def test_cover_fills_the_frame(size):
    picture = photograph().astype(np.float32) / 255
    filled = cover(picture, size)
    assert filled.shape == (*size, 3)
    assert filled.min() >= 0
    assert filled.max() <= 1


def test_cover_does_not_scale_what_it_cuts_off(monkeypatch):
    """Scaled whole, the line would have 45 rows of a million pixels."""
    scaled = []
    resize = cv2.resize
    monkeypatch.setattr(
        cv2, "resize", lambda picture, *args, **kw: scaled.append(picture.shape) or resize(picture, *args, **kw)
    )
    line = np.zeros((1, 24_000, 3), np.float32)
    line[:, 11_990:12_010] = 0.5
    filled = cover(line, (45, 60))
    assert filled.shape == (45, 60, 3)
    assert np.abs(filled - 0.5).max() <= np.finfo(np.float32).eps
    assert scaled[0][1] <= 4


def test_cover_cuts_out_the_middle():
    picture = photograph(45, 60).astype(np.float32) / 255
    assert np.array_equal(cover(picture, (45, 60)), picture)
    assert np.array_equal(cover(picture, (45, 20)), picture[:, 20:40])
    assert np.array_equal(cover(picture, (15, 60)), picture[15:30])


def test_background_picture(tmp_path):
    path = tmp_path / "b.png"
    write_pictures({path: photograph()})
    background = Background(str(path))
    assert background.path == path
    assert np.array_equal(np.rint(background.fill((45, 60)) * 255), photograph())
    assert Background("black").fill((45, 60)).tolist() == [0, 0, 0]
