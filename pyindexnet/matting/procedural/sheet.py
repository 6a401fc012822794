# SPDX-License-Identifier: Apache-2.0
"""Pictures of samples side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.procedural.raster import Array

_GAP = 4


def as_picture(tensor: object) -> Array:
    """An item's (3, H, W) or (1, H, W) tensor in [0, 1] as (H, W, 3) uint8."""
    pixels = np.asarray(tensor, np.float32).transpose(1, 2, 0)
    return np.rint(np.clip(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), 0, 1) * 255).astype(np.uint8)


def tile(rows: Sequence[Sequence[Array]]) -> Array:
    """Pictures (H, W, 3) uint8 of one size in rows, on white.

    Returns:
        (H', W', 3) uint8.
    """
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = _GAP + r * (height + _GAP), _GAP + c * (width + _GAP)
            sheet[top : top + height, left : left + width] = picture
    return sheet


def sample_sheet(items: Sequence[Item], *, columns: int = 4, side: int = 160) -> Array:
    """Image, trimap and alpha of each item in a cell, cells in rows; (H, W, 3) uint8.

    Args:
        columns: cells of a row. side: height of a picture in the sheet, pixels.
    """
    cells: list[Array] = []
    for item in items:
        pictures = [as_picture(item[key]) for key in ("image", "trimap", "alpha")]
        width = max(1, round(side * pictures[0].shape[1] / pictures[0].shape[0]))
        cells += [cv2.resize(p, (width, side), interpolation=cv2.INTER_AREA) for p in pictures]
    return tile([cells[i : i + 3 * columns] for i in range(0, len(cells), 3 * columns)])
