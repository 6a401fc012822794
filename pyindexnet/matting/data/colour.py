# SPDX-License-Identifier: Apache-2.0
"""Colours of the foreground: jitter of hue, saturation and value ([A2U]); colour pull, inversion, permutation ([LSANet])."""

from __future__ import annotations

import cv2
import numpy as np


def gamma_alpha(alpha: np.ndarray, gamma: float, *, from_opaque: bool = False) -> np.ndarray:
    """A matte with another softness: 255 (a / 255)^gamma, or 255 (1 - (1 - a / 255)^gamma) with ``from_opaque``.

    0 and 255 stay; fractions are truncated, as in [LSANet]'s code.

    Args:
        alpha: (H, W) uint8. gamma: above 0.
    Returns:
        (H, W) uint8.
    Raises:
        TypeError: a dtype. ValueError: gamma.
    """
    if alpha.dtype != np.uint8:
        raise TypeError(f"gamma_alpha: alpha must be uint8, got {alpha.dtype}")
    if not gamma > 0:
        raise ValueError(f"gamma_alpha: gamma must be above 0, got {gamma}")
    unit = np.arange(256) / 255
    curve = 1 - (1 - unit) ** gamma if from_opaque else unit**gamma
    return cv2.LUT(alpha, (255 * curve).astype(np.uint8))


def draw_gamma(rng: np.random.Generator) -> tuple[float, bool]:
    """(gamma, from_opaque) for :func:`gamma_alpha`: gamma in [0.5, 1) or [1, 2), each half the time."""
    gamma = rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 2)
    return float(gamma), bool(rng.random() < 0.5)


def shift_hsv(colours: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Add to hue (in degrees, round the circle), saturation and value (clipped to [0, 1]) of (H, W, 3) float32 RGB."""
    hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + hue) % 360
    hsv[..., 1:] = np.clip(hsv[..., 1:] + np.array([saturation, value], np.float32), 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def pull_to_colour(colours: np.ndarray, colour: np.ndarray, weight: float) -> np.ndarray:
    """weight * colours + (1 - weight) * colour ([LSANet] 4.2): a smoother foreground.

    Args:
        colours: (H, W, 3) float32. colour: (3,). weight: in [0, 1].
    """
    return np.float32(weight) * colours + np.float32(1 - weight) * colour.astype(np.float32)
