# SPDX-License-Identifier: Apache-2.0
"""Colour augmentation of the foreground, and the softness of alpha."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyindexnet.matting.data import colour
from tests.golden import load_case
from tests.matting.data.pictures import blob


@pytest.mark.parametrize("gamma", [0.55, 0.8, 1.4, 1.95])
@pytest.mark.parametrize(("branch", "from_opaque"), [("A", False), ("B", True)])
def test_golden_gamma(branch: str, from_opaque: bool, gamma: float) -> None:
    case = load_case("lsa_data", "gamma_aug")
    found = colour.gamma_alpha(case.arrays["input_alpha"], gamma, from_opaque=from_opaque)
    assert (found == case.arrays[f"output_gamma{gamma}_{branch}"]).all()


def test_drawn_gammas() -> None:
    rng = np.random.default_rng(0)
    drawn = [colour.draw_gamma(rng) for _ in range(400)]
    gammas = np.array([g for g, _ in drawn])
    assert gammas.min() >= 0.5
    assert gammas.max() < 2
    assert 0.4 < (gammas < 1).mean() < 0.6
    assert 0.4 < np.mean([opaque for _, opaque in drawn]) < 0.6


def test_gamma_errors() -> None:
    with pytest.raises(TypeError, match="^gamma_alpha: alpha must be uint8, got float64"):
        colour.gamma_alpha(np.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match="^gamma_alpha: gamma must be above 0, got 0"):
        colour.gamma_alpha(np.zeros((2, 2), np.uint8), 0)


def test_hsv_shift() -> None:
    pure = np.array([[[1, 0, 0], [0, 1, 0], [0.25, 0.25, 0.5]]], np.float32)
    eps = 8 * torch.finfo(torch.float32).eps
    assert np.abs(colour.shift_hsv(pure, 0, 0, 0) - pure).max() <= eps
    assert np.abs(colour.shift_hsv(pure, 120, 0, 0) - pure[..., [2, 0, 1]]).max() <= eps  # red becomes green
    assert np.abs(colour.shift_hsv(pure, -240, 0, 0) - pure[..., [2, 0, 1]]).max() <= eps
    assert np.abs(colour.shift_hsv(pure, 0, -1, 0) - pure.max(2, keepdims=True)).max() <= eps  # grey
    assert np.abs(colour.shift_hsv(pure, 0, 0, -0.5)[0, 2]).max() <= eps  # black


def test_pull() -> None:
    colours = blob()[0].astype(np.float32) / 255
    target = np.array([0.2, 0.4, 0.8])
    assert (colour.pull_to_colour(colours, target, 1) == colours).all()
    assert (colour.pull_to_colour(colours, target, 0) == target.astype(np.float32)).all()
    half = colour.pull_to_colour(colours, target, 0.5)
    assert np.ptp(half) < np.ptp(colours)
    assert half.dtype == np.float32
