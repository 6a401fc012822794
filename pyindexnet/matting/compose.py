# SPDX-License-Identifier: Apache-2.0
"""A matted photograph over a new background."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import ImageColor

from pyindexnet.matting.images import read_picture, to_unit


def composite(image: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Blend an image over a background: alpha * image + (1 - alpha) * background.

    The colours of the image serve as foreground, so that half-transparent pixels keep some of the old background; values
    are blended as stored (gamma-encoded), as matting data sets do.

    Args:
        image: (H, W, 3) RGB; uint8, uint16, or floating in [0, 1].
        alpha: (H, W) in [0, 1].
        background: (H, W, 3), or a colour (3,), floating in [0, 1]; or uint8, uint16.
    Returns:
        (H, W, 3) float32 in [0, 1].
    Raises:
        ValueError: sizes differ.
    """
    if alpha.shape != image.shape[:2]:
        raise ValueError(f"composite: alpha must be {image.shape[:2]}, got {alpha.shape}")
    if background.shape not in ((3,), image.shape):
        raise ValueError(f"composite: background must be {image.shape} or (3,), got {background.shape}")
    weight = alpha[:, :, None].astype(np.float32)
    behind = to_unit(background)
    return behind + weight * (to_unit(image) - behind)


class Background:
    """What ``--background`` names: a colour, or a picture that fills any frame.

    Args:
        spec: path of a picture, or a colour: a name ("white"), "#rrggbb", "rgb(0, 128, 255)" or "0,128,255".
    Raises:
        ValueError: neither. OSError: the picture cannot be read.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        #: File of the picture, None for a colour.
        self.path = Path(spec) if Path(spec).is_file() else None
        self._pixels = to_unit(read_picture(spec).rgb()) if self.path else parse_colour(spec)

    def fill(self, size: tuple[int, int]) -> np.ndarray:
        """The background for a frame of ``size`` = (height, width): (3,), or (height, width, 3) float32 in [0, 1]."""
        return self._pixels if self.path is None else cover(self._pixels, size)


def parse_colour(text: str) -> np.ndarray:
    """RGB of a colour, (3,) float32 in [0, 1]; see :class:`Background`."""
    plain = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
    try:
        rgb = ImageColor.getrgb(f"rgb({','.join(plain.groups())})" if plain else text)[:3]
        if max(rgb) > 255:
            raise ValueError
    except ValueError:
        raise ValueError(f"background: must be an existing picture or a colour, got {text!r}") from None
    return np.array(rgb, np.float32) / 255


def cover(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a picture, keeping its proportions, until it covers a frame, and cut out the middle.

    Args:
        picture: (h, w, 3) float32. size: height and width of the frame.
    Returns:
        (height, width, 3) float32 in [0, 1].
    """
    height, width = size
    scale = max(height / picture.shape[0], width / picture.shape[1])
    # what will be cut off is not scaled first: a line of 30000 pixels behind a photograph would take gigabytes
    rows, columns = (max(0, int((whole - frame / scale) / 2)) for whole, frame in zip(picture.shape, size, strict=False))
    picture = picture[rows : picture.shape[0] - rows, columns : picture.shape[1] - columns]
    scaled = max(height, math.ceil(picture.shape[0] * scale)), max(width, math.ceil(picture.shape[1] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(picture, scaled[::-1], interpolation=interpolation)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return np.clip(resized[top : top + height, left : left + width], 0, 1)
