# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets, drawn into a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pyindexnet.matting.data import draw_trimap


def blob(height: int = 60, width: int = 76, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) and alpha (H, W), uint8: a soft disk that leaves the border clear."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2 - rng.uniform(-4, 4), x - width / 2 - rng.uniform(-4, 4))
    alpha = np.clip((min(height, width) / 3 - distance) / 6, 0, 1)
    return colours[:height, :width], np.rint(255 * alpha).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_foregrounds(colours: Path, alphas: Path, names: Iterable[str], suffix: str = ".png") -> None:
    """A colour picture and a matte for each name."""
    for seed, name in enumerate(names):
        pixels, alpha = blob(seed=seed)
        write(colours / f"{name}{suffix}", pixels)
        write(alphas / f"{name}.png", alpha)


def write_backgrounds(folder: Path, count: int = 3, size: tuple[int, int] = (50, 90)) -> list[Path]:
    rng = np.random.default_rng(7)
    return [write(folder / f"{i}.png", rng.integers(0, 256, (*size, 3), np.uint8)) for i in range(count)]


def write_trimap(path: Path, alpha: np.ndarray) -> Path:
    return write(path, draw_trimap(alpha, 3, 3))
