# SPDX-License-Identifier: Apache-2.0
"""Trimaps: levels, warnings, errors, orientation."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest

from pyindexnet.matting.images import Picture, read_picture
from pyindexnet.matting.trimaps import fit_trimap, quantize_trimap, turn_upright
from tests.matting.pictures import encoded, photograph, stored, trimap
from tests.shared_data import shared_path


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("unknown", [13, 85, 102, 127, 128, 129, 200, 242])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_level_between_counts_as_unknown(channels, dtype, unknown):
    drawn = trimap(unknown=unknown).astype(dtype) * (257 if dtype == np.uint16 else 1)
    drawn = np.dstack([drawn] * 3) if channels == 3 else drawn
    quantized = quantize_trimap(drawn)
    assert quantized.dtype == np.uint8
    assert np.array_equal(quantized, trimap(unknown=128))


def test_almost_black_and_white_are_known():
    drawn = trimap()
    drawn[drawn == 0] = 12
    drawn[drawn == 255] = 243
    assert np.array_equal(quantize_trimap(drawn), trimap())


def test_soft_alpha_is_quantized_with_a_warning():
    alpha = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    with pytest.warns(UserWarning, match=r"alpha\.png: has more than three levels; quantised: background is 0 to 12"):
        quantized = quantize_trimap(alpha, name="alpha.png")
    assert (quantized[:, :13] == 0).all()
    assert (quantized[:, 13:243] == 128).all()
    assert (quantized[:, 243:] == 255).all()


def test_four_levels_are_quantized_with_a_warning():
    drawn = trimap()
    drawn[:, :4] = 64
    with pytest.warns(UserWarning, match="more than three levels"):
        assert (quantize_trimap(drawn)[:, :4] == 128).all()


@pytest.mark.parametrize("quality", [100, 90, 75])
@pytest.mark.parametrize("unknown", [102, 128])
def test_jpeg_noise_is_tolerated(tmp_path, unknown, quality):
    clean = trimap(450, 600, unknown)
    ok, data = cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    (tmp_path / "t.jpg").write_bytes(data)
    drawn = read_picture(tmp_path / "t.jpg")
    quantized = quantize_trimap(drawn.pixels, lossy=drawn.lossy)
    assert (quantized[clean == unknown] == 128).all()
    # what ringing adds to the unknown band lies in the 8 x 8 blocks that its edge passes through
    near = cv2.dilate((clean == unknown).astype(np.uint8), np.ones((17, 17), np.uint8)) == 1
    assert np.array_equal(quantized[~near], trimap(450, 600, 128)[~near])


def test_soft_alpha_as_jpeg_is_warned_of(tmp_path):
    alpha = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    (tmp_path / "t.jpg").write_bytes(encoded(".jpg", alpha))
    with pytest.warns(UserWarning, match="more than three levels"):
        quantize_trimap(read_picture(tmp_path / "t.jpg").pixels, lossy=True)


def test_a_trimap_with_background_and_unknown_alone_is_fine():
    drawn = np.minimum(trimap(), 128)
    assert np.array_equal(quantize_trimap(drawn), drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(trimap() == 128, 255, trimap()).astype(np.uint8), "has no unknown pixels"),
        (np.full((4, 5), 128, np.uint8), "has no known pixels"),
        (np.array([[0, 1, 2]], np.uint8), "has no unknown pixels"),
        (photograph(), "must be grey, got colours; are image and trimap swapped?"),
        (np.zeros((4, 5, 2), np.uint8), r"must be \(H, W\) or \(H, W, 3\), got \(4, 5, 2\)"),
    ],
    ids=["no unknown", "no known", "indices", "coloured", "shape"],
)
def test_refused(values, message):
    with pytest.raises(ValueError, match=message):
        quantize_trimap(values)


def test_dtype_is_refused():
    with pytest.raises(TypeError, match="dtype must be uint8 or uint16, got float32"):
        quantize_trimap(np.zeros((4, 5), np.float32))


def test_real_trimap():
    drawn = read_picture(shared_path("data", "lemur", "lemur_trimap.png"))
    quantized = quantize_trimap(drawn.pixels)
    grey = drawn.pixels[:, :, 0]
    assert sorted(np.unique(grey)) == [0, 102, 255]
    assert np.array_equal(quantized == 128, grey == 102)
    assert np.array_equal(quantized == 0, grey == 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_upright(orientation):
    upright = photograph()
    assert np.array_equal(turn_upright(stored(upright, orientation), orientation), upright)


def test_fit_trimap_of_the_right_size():
    assert np.array_equal(fit_trimap(Picture(trimap()), Picture(photograph(), orientation=6)), trimap())


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_fit_trimap_drawn_on_the_stored_pixels(orientation):
    drawn = Picture(stored(trimap(), orientation))
    with pytest.warns(UserWarning, match="lies on the image as stored; turned with its EXIF orientation"):
        assert np.array_equal(fit_trimap(drawn, Picture(photograph(), orientation)), trimap())


@pytest.mark.parametrize(
    ("drawn", "image"),
    [
        (Picture(trimap(45, 61)), Picture(photograph())),
        (Picture(trimap(60, 45)), Picture(photograph())),
        (Picture(trimap(60, 45), orientation=6), Picture(photograph(), orientation=6)),
        (Picture(trimap(60, 45)), Picture(photograph(), orientation=3)),
    ],
    ids=["width", "transposed", "own orientation", "upside down"],
)
def test_fit_trimap_of_another_size(drawn, image):
    with pytest.raises(ValueError, match=r"t\.png: size must be that of the image, 60 x 45(?: upright)?, got \d+ x \d+"):
        fit_trimap(drawn, image, name="t.png")
