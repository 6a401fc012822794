# SPDX-License-Identifier: Apache-2.0
"""Metrics against golden figures of five implementations, against plain loops, and where implementations differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from pyindexnet.matting.metrics import (
    MODES,
    connected_level,
    connectivity_error,
    evaluate_pair,
    gradient_error,
    gradient_magnitude,
    mse,
    sad,
)
from tests.golden import load_case

CASES = ("blob", "all_known", "constant", "two_equal_blobs", "narrow_range", "gt_inconsistent")
PUBLISHED = {
    "matlab": "matlab",
    "indexnet": "indexnet_utils",
    "mmedit": "mmedit",
    "lsanet": "lsa_eval_loss",
    "lsanet_measure": "lsa_eval_measure",
}
NAMES = {"sad": "SAD", "mse": "MSE", "grad": "Grad", "conn": "Conn"}
SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def mattes(height: int = 23, width: int = 31, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction and alpha with several components at every level, multiples of 1/255, and a trimap that fits neither."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width)), 2)
    alpha = np.clip(0.5 + 2.5 * noise, 0, 1)
    prediction = np.clip(alpha + 0.2 * rng.standard_normal((height, width)), 0, 1)
    trimap = rng.choice(np.array([0, 128, 128, 255], np.uint8), (height, width))
    return np.rint(prediction * 255) / 255, np.rint(alpha * 255) / 255, trimap


def same(expected: dict[str, float]) -> dict[str, object]:
    """Up to the last bits: a filter rounds differently with the alignment of its buffers."""
    return {name: pytest.approx(value, rel=100 * DOUBLE, abs=1000 * DOUBLE**2) for name, value in expected.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, mode: str) -> None:
    case = load_case("metrics", name)
    found = evaluate_pair(*(case.arrays[f"input_{n}"] for n in ("pred", "gt", "trimap")), mode=mode)
    keys = {k: f"output_{PUBLISHED[mode]}_{v}" for k, v in NAMES.items()}
    compared = {k: case.arrays[key] for k, key in keys.items() if key in case.arrays}
    assert set(compared) == ({"grad"} if mode == "lsanet_measure" else NAMES.keys())
    # These cases store no noise floor; the published figures are sums in single precision: ten roundings of the result, and
    # of zero what the rounding of a filter in double precision leaves of it.
    size = case.arrays["input_pred"].size
    for key, golden in compared.items():
        if math.isnan(golden):
            assert math.isnan(found[key])
        else:
            assert abs(found[key] - golden) <= 10 * SINGLE * golden + size * DOUBLE**2, key


@pytest.mark.parametrize("name", CASES)
def test_golden_maps(name: str) -> None:
    case = load_case("metrics", name)
    prediction, alpha = (case.arrays[f"input_{n}"] / 255 for n in ("pred", "gt"))
    for matte, key in ((prediction, "matlab_pred_amplitude"), (alpha, "matlab_gt_amplitude")):
        # 81 products per pixel, of values up to 1 with a kernel whose absolute sum is below 6
        assert np.abs(gradient_magnitude(matte) - case.arrays[key]).max() <= 81 * 6 * DOUBLE
    assert np.abs(connected_level(prediction, alpha) - case.arrays["matlab_l_map"]).max() <= DOUBLE


def plain_level(prediction: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """l, by flooding from every pixel."""
    height, width = alpha.shape
    level = np.full(alpha.shape, -1.0)
    for k in range(1, 11):
        reached = (prediction.astype(np.float32) >= np.float32(k / 10)) & (alpha.astype(np.float32) >= np.float32(k / 10))
        components: list[set[tuple[int, int]]] = []
        seen: set[tuple[int, int]] = set()
        for x in range(width):  # column by column: the first of the largest wins
            for y in range(height):
                if not reached[y, x] or (y, x) in seen:
                    continue
                component, edge = {(y, x)}, [(y, x)]
                while edge:
                    v, u = edge.pop()
                    for b, a in ((v + 1, u), (v - 1, u), (v, u + 1), (v, u - 1)):
                        if 0 <= b < height and 0 <= a < width and reached[b, a] and (b, a) not in component:
                            component.add((b, a))
                            edge.append((b, a))
                components.append(component)
                seen |= component
        if not components:
            continue
        largest = max(components, key=len)
        for y in range(height):
            for x in range(width):
                if level[y, x] == -1 and (y, x) not in largest:
                    level[y, x] = (k - 1) / 10
    return np.where(level == -1, 1.0, level)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(23, 31), (1, 17), (9, 1)], ids=str)
def test_connectivity_by_flooding(size: tuple[int, int], seed: int) -> None:
    prediction, alpha, trimap = mattes(*size, seed)
    level = plain_level(prediction, alpha)
    assert np.abs(connected_level(prediction, alpha) - level).max() <= DOUBLE
    phi = [1 - np.where(m - level >= 0.15, m - level, 0) for m in (prediction, alpha)]
    expected = np.abs(phi[0] - phi[1])[trimap == 128].sum() / 1000
    assert connectivity_error(prediction, alpha, trimap) == pytest.approx(expected, rel=2 * trimap.size * DOUBLE)


@pytest.mark.parametrize("mode", ["matlab", "indexnet"])
def test_gradient_by_scipy(mode: str) -> None:
    prediction, alpha, trimap = mattes()
    magnitude = []
    for matte in (prediction, alpha):
        image = (matte - matte.min()) / np.ptp(matte)
        if mode == "matlab":
            offsets = np.arange(-4, 5)
            gaussian = np.exp(-(offsets**2) / (2 * 1.4**2))
            kernel = np.outer(gaussian, offsets * gaussian)
            kernel /= np.sqrt((kernel**2).sum())
            parts = [ndimage.convolve(image, k, mode="nearest") for k in (kernel, kernel.T)]
        else:
            parts = [ndimage.gaussian_filter(image, 1.4, order=order) for order in ((0, 1), (1, 0))]
        magnitude.append(np.hypot(*parts))
    expected = ((magnitude[0] - magnitude[1]) ** 2)[trimap == 128].sum() * (1e-3 if mode == "matlab" else 1e-1)
    assert gradient_error(prediction, alpha, trimap, mode=mode) == pytest.approx(expected, rel=1000 * DOUBLE)


def test_sums_and_regions() -> None:
    prediction, alpha, trimap = mattes()
    difference = np.abs(prediction - alpha)
    unknown = trimap == 128
    assert sad(prediction, alpha, trimap) == pytest.approx(difference[unknown].sum() / 1000)
    assert mse(prediction, alpha, trimap) == pytest.approx((difference[unknown] ** 2).mean())
    assert sad(prediction, alpha, region="whole") == pytest.approx(difference.sum() / 1000)
    assert mse(prediction, alpha, region="whole") == pytest.approx((difference**2).mean())
    everywhere = evaluate_pair(prediction, alpha, np.full_like(trimap, 128))
    assert evaluate_pair(prediction, alpha, region="whole") == same(everywhere)
    alone = {"conn": connectivity_error, "grad": gradient_error, "sad": sad, "mse": mse}
    assert {name: metric(prediction, alpha, region="whole") for name, metric in alone.items()} == same(everywhere)


@pytest.mark.parametrize("mode", MODES)
def test_perfect_prediction(mode: str) -> None:
    _, alpha, trimap = mattes()
    assert evaluate_pair(alpha, alpha, trimap, mode=mode) == same(dict.fromkeys(NAMES, 0.0))


def test_kinds_of_arrays_agree() -> None:
    prediction, alpha, trimap = (np.rint(a).astype(np.uint8) for a in (*(255 * m for m in mattes()[:2]), mattes()[2]))
    expected = evaluate_pair(prediction, alpha, trimap)
    assert evaluate_pair(prediction / 255, alpha / 255, trimap) == same(expected)
    sixteen = [m.astype(np.uint16) * 257 for m in (prediction, alpha)]
    assert evaluate_pair(*sixteen, trimap) == same(expected)
    tensors = [torch.from_numpy(m / 255).requires_grad_() for m in (prediction, alpha)]
    assert evaluate_pair(*tensors, torch.from_numpy(trimap)) == same(expected)
    coarse = [torch.from_numpy(m / 255).bfloat16() for m in (prediction, alpha)]
    assert evaluate_pair(*coarse, trimap) == same(evaluate_pair(*(m.float() for m in coarse), trimap))
    transposed = [np.asfortranarray(m) for m in (prediction, alpha, trimap)]
    assert evaluate_pair(*transposed) == same(expected)


def test_arguments_are_left_alone() -> None:
    arguments = mattes()
    before = [a.copy() for a in arguments]
    for mode in MODES:
        evaluate_pair(*arguments, mode=mode)
    assert all((a == b).all() for a, b in zip(arguments, before, strict=True))


def test_errors() -> None:
    prediction, alpha, trimap = mattes()
    with pytest.raises(ValueError, match=r"^sad: prediction must be \(H, W\) with H, W > 0, got \(23, 31, 1\)"):
        sad(prediction[..., None], alpha, trimap)
    with pytest.raises(ValueError, match=r"^mse: alpha must be \(H, W\) with H, W > 0, got \(0, 31\)"):
        mse(prediction, alpha[:0], trimap)
    with pytest.raises(ValueError, match=r"^mse: alpha must be \(23, 31\), the shape of prediction, got \(22, 31\)"):
        mse(prediction, alpha[1:], trimap)
    with pytest.raises(TypeError, match="^sad: alpha must be floating, uint8 or uint16, got int64"):
        sad(prediction, alpha.astype(np.int64), trimap)
    with pytest.raises(ValueError, match=r"^sad: prediction must be in \[0, 1\], got 0 to 255"):
        sad(prediction * 255, alpha, trimap)
    with pytest.raises(ValueError, match=r"^sad: alpha must be in \[0, 1\], got nan"):
        sad(prediction, alpha * np.nan, trimap)
    with pytest.raises(ValueError, match=r"^evaluate_pair: trimap must be \(23, 31\), the shape of prediction, got \(22, 31\)"):
        evaluate_pair(prediction, alpha, trimap[1:])
    with pytest.raises(TypeError, match="^sad: trimap must be uint8, got float64"):
        sad(prediction, alpha, trimap / 255)
    with pytest.raises(ValueError, match="^sad: trimap must hold 0, 128 and 255 alone .* got 127"):
        sad(prediction, alpha, trimap - (trimap == 128))
    with pytest.raises(ValueError, match='^sad: trimap must be given unless region is "whole"'):
        sad(prediction, alpha)
    with pytest.raises(ValueError, match="^sad: mode must be one of 'matlab', .*, got 'octave'"):
        sad(prediction, alpha, trimap, mode="octave")
    with pytest.raises(ValueError, match="^sad: region must be one of 'unknown', 'whole', got 'known'"):
        sad(prediction, alpha, trimap, region="known")  # type: ignore[arg-type]
