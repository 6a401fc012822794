# SPDX-License-Identifier: Apache-2.0
"""One warp from a source picture to a crop: resize, affine map, flip and crop are multiplied before any pixel is touched.

Matrices are 3 x 3, of homogeneous (x, y, 1), in coordinates whose integers are the edges of pixels, so that a scaling needs no
half-pixel correction; :func:`warp` turns them into OpenCV's, whose integers are pixel centres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

# Seeds of a crop are looked for on a grid of about this many pixels: drawing one needs no scan of a 10-megapixel matte.
_SEED_GRID = 512


@dataclass(frozen=True)
class Frame:
    """Where a square crop lies in a source picture.

    Attributes:
        matrix: (3, 3), source to crop.
        size: side of the crop in pixels.
    """

    matrix: np.ndarray
    size: int

    def grown(self, margin: int) -> Frame:
        """The same crop with ``margin`` more pixels on each side."""
        return Frame(translation(margin, margin) @ self.matrix, self.size + 2 * margin)

    def of_resized(self, source: tuple[int, int], other: tuple[int, int]) -> Frame:
        """For a picture of size ``other`` = (height, width) that is stretched over the one of size ``source``."""
        return Frame(self.matrix @ scaling(source[1] / other[1], source[0] / other[0]), self.size)


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


def affine(degrees: float, zoom: float, shear_degrees: float) -> np.ndarray:
    """Rotation after a shear along x after a zoom, about the origin."""
    angle, shear = math.radians(degrees), math.tan(math.radians(shear_degrees))
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    return rotation @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]]) @ scaling(zoom, zoom)


def seed_pixel(alpha: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A random pixel with 0 < alpha < 255; one with alpha > 0, or any, where there is none.

    Returns:
        (x, y) of its upper left corner, whole numbers: a crop around it without a scaling moves whole pixels.
    """
    step = max(1, min(alpha.shape) // _SEED_GRID)
    for grid in (step, 1):
        coarse = alpha[::grid, ::grid]
        found = np.flatnonzero((coarse > 0) & (coarse < 255))
        if found.size:
            break
    else:
        found = np.flatnonzero(coarse)
    index = int(found[rng.integers(found.size)]) if found.size else int(rng.integers(coarse.size))
    y, x = divmod(index, coarse.shape[1])
    return x * grid, y * grid


def cover_factor(linear: np.ndarray, source: tuple[int, int], size: int) -> float:
    """The scaling after which ``linear`` (3, 3) makes a picture of ``source`` (height, width) at least ``size`` each way."""
    return size / float(np.ptp(_corners(linear, source), axis=1).min())


def _corners(linear: np.ndarray, source: tuple[int, int]) -> np.ndarray:
    """(2, 4): where the corners of a picture go, but for the translation."""
    return linear[:2, :2] @ np.array([[0, source[1], 0, source[1]], [0, 0, source[0], source[0]]], np.float64)


def crop_around(linear: np.ndarray, seed: tuple[float, float], source: tuple[int, int], size: int) -> Frame:
    """The crop of ``size`` that has ``seed`` in its middle, moved to lie inside the source as far as it can.

    Args:
        linear: (3, 3), source to the scale of the crop; its translation is replaced.
        seed: (x, y) in the source. source: (height, width).
    """
    corners = _corners(linear, source)
    offset = size / 2 - linear[:2, :2] @ np.array(seed)
    for axis, (low, high) in enumerate(zip(corners.min(1), corners.max(1), strict=True)):
        if high - low >= size:
            offset[axis] = np.clip(offset[axis], size - high, -low)
        else:
            offset[axis] = (size - high - low) / 2
    matrix = linear.copy()
    matrix[:2, 2] = offset
    return Frame(matrix, size)


def warp(
    picture: np.ndarray, frame: Frame, *, interpolation: int = cv2.INTER_LINEAR, border: int = cv2.BORDER_CONSTANT
) -> np.ndarray:
    """Sample a picture in a frame.

    Args:
        picture: (H, W) or (H, W, C), uint8 or float32.
        interpolation, border: of OpenCV; the constant border is 0.
    Returns:
        (size, size) or (size, size, C), dtype of ``picture``. A picture that is shrunk by 2 or more is averaged first, because
        an interpolation alone would skip pixels.
    """
    matrix = frame.matrix
    shrink = int(1 / math.sqrt(abs(np.linalg.det(matrix[:2, :2]))) + 1e-6)
    if shrink >= 2:
        height, width = (max(1, side // shrink) for side in picture.shape[:2])
        matrix = matrix @ scaling(picture.shape[1] / width, picture.shape[0] / height)
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    centred = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)
    return cv2.warpAffine(picture, centred[:2], (frame.size, frame.size), flags=interpolation, borderMode=border)
