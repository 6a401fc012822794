# SPDX-License-Identifier: Apache-2.0
"""The user's own pictures in the generator: RGBA cut-outs and photographs, randomly cropped, scaled and mirrored."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from pyindexnet.matting.data.files import list_pictures, read_colours, read_cutout
from pyindexnet.matting.images import to_unit
from pyindexnet.matting.procedural.raster import Array, Layer, Rng, uniform


class Photographs:
    """Backgrounds from a folder and its sub-folders.

    Args:
        folder: of .png, .jpg, .tif, .webp or .bmp files.
    Raises:
        ValueError: no folder, or no picture in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.paths = list_pictures(Path(folder), recursive=True)

    def draw(self, rng: Rng, size: tuple[int, int]) -> Array:
        """A random crop of a random photograph, (H, W, 3) float32 in [0, 1].

        Raises:
            ValueError, OSError: the file is no picture or cannot be read.
        """
        path = self.paths[int(rng.integers(len(self.paths)))]
        pixels = to_unit(read_colours(path))
        fill = max(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
        return np.clip(_view(rng, pixels, size, max(fill, fill * uniform(rng, 1, 2.5)), border=cv2.BORDER_REFLECT_101), 0, 1)


class CutOuts:
    """Foregrounds from a folder of pictures with an alpha channel, and its sub-folders.

    Args:
        folder: of .png, .tif or .webp files with transparency.
    Raises:
        ValueError: no folder, or no picture in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.paths = list_pictures(Path(folder), recursive=True)

    def draw(self, rng: Rng, size: tuple[int, int]) -> tuple[str, Layer]:
        """Name and layer of a random cut-out, scaled to 0.5 to 1.3 of the frame and turned.

        Raises:
            ValueError: a file without an alpha channel, or a broken one. OSError: it cannot be read.
        """
        path = self.paths[int(rng.integers(len(self.paths)))]
        rgb, matte = read_cutout(path)
        opacity = to_unit(matte)[:, :, None]
        # premultiplied for the interpolation, so that colours under transparency do not bleed in
        pixels = np.dstack([to_unit(rgb) * opacity, opacity])
        fit = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
        turned = _view(rng, pixels, size, fit * uniform(rng, 0.5, 1.3), border=cv2.BORDER_CONSTANT, turn=0.5)
        alpha = np.clip(turned[:, :, 3], 0, 1)
        colour = turned[:, :, :3] / np.maximum(alpha, 1 / 512)[:, :, None]
        return path.stem, Layer(alpha, np.clip(colour, 0, 1))


def _view(rng: Rng, pixels: Array, size: tuple[int, int], scale: float, *, border: int, turn: float = 0.0) -> Array:
    """Scale, mirror and turn a picture and look at a random part of it, (H, W, C) float32."""
    if scale < 1:
        shrunk = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels, scale = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA), 1.0
    angle = rng.normal(0, turn)
    mirror = -1 if rng.random() < 0.5 else 1
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1])
    middle = np.array([pixels.shape[1], pixels.shape[0]]) / 2
    frame = np.array([size[1], size[0]]) / 2
    room = np.abs(middle * 2 * scale - frame * 2) / 2  # how far the middle may move
    offset = frame + rng.uniform(-1, 1, 2) * room - linear @ middle
    matrix = np.column_stack([linear, offset])
    return cv2.warpAffine(pixels, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=border)
