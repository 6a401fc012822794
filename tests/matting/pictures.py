# SPDX-License-Identifier: Apache-2.0
"""Small pictures and trimaps for tests."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112


def photograph(height: int = 45, width: int = 60, dtype: type = np.uint8, channels: int = 3) -> np.ndarray:
    """A smooth picture without symmetries, (H, W, channels)."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    colours = [np.sin(5 * x + i) * np.cos(3 * y - i) * 0.4 + 0.5 - 0.1 * y for i in range(channels)]
    return np.rint(np.dstack(colours) * np.iinfo(dtype).max).astype(dtype)


def trimap(height: int = 45, width: int = 60, unknown: int = 128) -> np.ndarray:
    """Background at the left, foreground at the right, an unknown band that moves down to the right; (H, W) uint8."""
    y, x = np.mgrid[:height, :width]
    edge = x - width / 2 - y / 4
    levels = np.where(edge > 6, 255, np.where(edge < -6, 0, unknown))
    return levels.astype(np.uint8)


def with_orientation(pixels: np.ndarray, orientation: int, format: str) -> bytes:
    """8-bit pixels, as stored, in a file that asks to be turned."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    Image.fromarray(pixels).save(file, format, exif=exif, **options)
    return file.getvalue()


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores for a picture that it marks with an EXIF orientation: the inverse of its correction."""
    sides = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),  # to be turned 90 degrees clockwise
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(sides[orientation](upright))


def encoded(suffix: str, pixels: np.ndarray) -> bytes:
    """RGB or grey pixels of 8 or 16 bits as a file of OpenCV's."""
    ok, data = cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
    if not ok:
        raise AssertionError(f"OpenCV cannot encode {suffix}")
    return data.tobytes()
