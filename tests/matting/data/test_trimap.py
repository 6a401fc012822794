# SPDX-License-Identifier: Apache-2.0
"""Trimaps drawn from mattes, against golden arrays and plain morphology."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pyindexnet.matting.data import draw_trimap
from tests.golden import load_case


def matte(height: int = 71, width: int = 83) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((height, width)), 8)
    return np.clip(np.rint(128 + 9000 * noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("radius", [1, 7, 19])
def test_golden_indexnet(radius: int) -> None:
    case = load_case("preprocessing", "trimap_from_alpha")
    trimap = draw_trimap(case.arrays["input_alpha"], radius, radius, method="fractional")
    assert (trimap == case.arrays[f"output_indexnet_r{radius}"]).all()


@pytest.mark.parametrize(("outside", "inside"), [(1, 24), (9, 3)])
def test_golden_lsanet(outside: int, inside: int) -> None:
    case = load_case("preprocessing", "trimap_from_alpha")
    assert (draw_trimap(case.arrays["input_alpha"], outside, inside) == case.arrays[f"output_lsa_r{outside}_{inside}"]).all()


@pytest.mark.parametrize("seed", [883, 915])
def test_golden_lsanet_items(seed: int) -> None:
    case = load_case("lsa_data", f"matdataset_item_seed{seed}")
    outside, inside = (value for name, _, value, caller in case.info["random_draws"] if "original_trimap" in caller)
    trimap = draw_trimap(case.arrays["output_alpha"][0].astype(np.uint8), outside, inside)
    assert (trimap == case.arrays["output_trimap"][0]).all()


@pytest.mark.parametrize("radii", [(0, 0), (1, 4), (6, 2)], ids=str)
@pytest.mark.parametrize("method", ["disk", "square"])
def test_morphology(method: str, radii: tuple[int, int]) -> None:
    alpha = matte()

    def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        footprint = y**2 + x**2 <= radius**2 if method == "disk" else np.ones(y.shape, bool)
        return ndimage.binary_dilation(mask, footprint)

    trimap = draw_trimap(alpha, *radii, method=method)
    assert ((trimap == 0) == ~dilated(alpha > 0, radii[0])).all()
    assert ((trimap == 255) == ~dilated(alpha < 255, radii[1])).all()
    assert set(np.unique(trimap)) == {0, 128, 255}


@pytest.mark.parametrize("method", ["disk", "square", "fractional"])
def test_mattes_of_one_value(method: str) -> None:
    for value, level in ((0, 0), (255, 255), (9, 128)):
        assert (draw_trimap(np.full((5, 8), value, np.uint8), 3, 2, method=method) == level).all()


def test_hard_edge() -> None:
    alpha = np.zeros((4, 8), np.uint8)
    alpha[:, 4:] = 255
    assert (draw_trimap(alpha, 2, 2, method="fractional") == alpha).all()
    assert (draw_trimap(alpha, 2, 1)[0] == [0, 0, 128, 128, 128, 255, 255, 255]).all()


def test_errors() -> None:
    alpha = matte()
    with pytest.raises(ValueError, match=r"^draw_trimap: alpha must be \(H, W\), got \(1, 71, 83\)"):
        draw_trimap(alpha[None], 1, 1)
    with pytest.raises(TypeError, match="^draw_trimap: alpha must be uint8, got float64"):
        draw_trimap(alpha / 255, 1, 1)
    with pytest.raises(ValueError, match="^draw_trimap: inside must be 0 or more, got -1"):
        draw_trimap(alpha, 1, -1)
    with pytest.raises(ValueError, match="^draw_trimap: method must be one of 'fractional', .* got 'cross'"):
        draw_trimap(alpha, 1, 1, method="cross")


@pytest.mark.parametrize("method", ["fractional", "disk", "square"])
@pytest.mark.parametrize("shape", [(5, 5), (1, 30), (30, 1), (9, 4), (4, 9), (10, 11), (1, 1)])
def test_mattes_smaller_than_the_radius(shape: tuple[int, int], method: str) -> None:
    alpha = np.random.default_rng(0).choice(np.array([0, 0, 0, 255, 255, 128], np.uint8), shape)
    fractional = (alpha > 0) & (alpha < 255)
    expected = np.full(shape, 128)
    for level, radius in ((255, 3), (0, 10)):
        seed = fractional if method == "fractional" else alpha != level
        distance = ndimage.distance_transform_edt(~seed) if seed.any() else np.full(shape, np.inf)
        if method == "square":
            distance = ndimage.distance_transform_cdt(~seed, "chessboard") if seed.any() else distance
        expected[(alpha == level) & (distance > radius)] = level
    assert (draw_trimap(alpha, 10, 3, method=method) == expected).all()
