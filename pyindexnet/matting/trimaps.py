# SPDX-License-Identifier: Apache-2.0
"""Trimaps: which pixels are known background, known foreground, unknown."""

from __future__ import annotations

import warnings

import numpy as np

from pyindexnet.matting.images import Picture

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255

# A level this far (of 255) from black or white, or nearer, is clearly background or foreground. Real trimaps use 128, 127,
# 102 or 85 for unknown; rendering and colour conversion move black and white by a few levels.
TOLERANCE = 12
# For JPEG and WebP, whose ringing moves black and white near an edge. Of 300,000 pixels of a hand-drawn trimap (levels 0,
# 102, 255) saved at JPEG quality 90 / 75 / 50, 7 / 592 / 1191 known pixels became unknown with a tolerance of 12, and
# 0 / 84 / 456 with 25; no unknown pixel became known with either.
LOSSY_TOLERANCE = 25
# A lossy trimap holds several levels in between, and not one with noise, where more than this share of its in-between
# pixels is further than this from their median. At JPEG quality 50 the trimap above has a share of 0.014, a soft alpha
# 0.68, two levels of 85 and 170 have 0.39.
_LOSSY_SPREAD, _LOSSY_SHARE = 40, 0.05
# Channels of a grey picture differ by rounding, or by JPEG's chroma noise.
_GREY_DIFFERENCE, _GREY_SHARE = 32, 0.01


def quantize_trimap(values: np.ndarray, *, lossy: bool = False, name: str = "trimap") -> np.ndarray:
    """Reduce a trimap, as drawn, to the three levels that networks were trained with.

    At most :data:`TOLERANCE` of 255 from black is background, from white is foreground, everything between is unknown.

    Args:
        values: (H, W), or (H, W, 3) with equal channels; uint8 or uint16.
        lossy: from a JPEG or WebP file: :data:`LOSSY_TOLERANCE` instead.
        name: what messages call it.
    Returns:
        (H, W) uint8 with the values 0, 128, 255.
    Raises:
        TypeError: another dtype.
        ValueError: not such a shape, coloured, or without unknown or without known pixels.
    Warns:
        UserWarning: more than three levels, such as a soft alpha.
    """
    levels = as_8_bit(as_grey(np.asarray(values), name), name)
    tolerance = LOSSY_TOLERANCE if lossy else TOLERANCE
    trimap = np.full(levels.shape, UNKNOWN, np.uint8)
    trimap[levels <= tolerance] = BACKGROUND
    trimap[levels >= 255 - tolerance] = FOREGROUND
    unknown = trimap == UNKNOWN
    rule = f"background is 0 to {tolerance}, foreground {255 - tolerance} to 255"
    if not unknown.any():
        raise ValueError(f"{name}: has no unknown pixels ({rule}); nothing to estimate")
    if unknown.all():
        raise ValueError(f"{name}: has no known pixels ({rule}); nothing to start from")
    if _many_levels(levels, unknown, lossy):
        warnings.warn(f"{name}: has more than three levels; quantised: {rule}, the rest is unknown", stacklevel=2)
    return trimap


def fit_trimap(trimap: Picture, image: Picture, *, name: str = "trimap") -> np.ndarray:
    """Pixels of a trimap file, turned to lie on an image.

    Both pictures are upright. A trimap without an orientation of its own that fits the image only as stored, before the
    image was turned upright, is turned with the image.

    Args:
        trimap: the decoded trimap. image: the decoded image.
        name: what messages call the trimap.
    Returns:
        Pixels of ``trimap``, of the image's height and width.
    Raises:
        ValueError: the sizes differ.
    Warns:
        UserWarning: the trimap was turned.
    """
    if trimap.size == image.size:
        return trimap.pixels
    if image.orientation >= 5 and trimap.orientation == 1 and trimap.size == image.size[::-1]:
        warnings.warn(f"{name}: lies on the image as stored; turned with its EXIF orientation", stacklevel=2)
        return turn_upright(trimap.pixels, image.orientation)
    turned = " upright" if image.orientation >= 5 or trimap.orientation >= 5 else ""
    raise ValueError(
        f"{name}: size must be that of the image, {image.size[1]} x {image.size[0]}{turned}, "
        f"got {trimap.size[1]} x {trimap.size[0]}"
    )


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8, to stored pixels (H, W) or (H, W, C)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def as_grey(values: np.ndarray, name: str) -> np.ndarray:
    """The one channel of a picture (H, W), or (H, W, 3) with equal channels; ValueError for colours."""
    if values.ndim == 2:
        return values
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{name}: must be (H, W) or (H, W, 3), got {values.shape}")
    difference = values.max(axis=2) - values.min(axis=2)
    limit = _GREY_DIFFERENCE * (257 if values.dtype == np.uint16 else 1)
    if (difference > limit).mean() > _GREY_SHARE:
        raise ValueError(f"{name}: must be grey, got colours; are image and trimap swapped?")
    return values[:, :, 1]


def as_8_bit(grey: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8, from uint8 or uint16 (any shape); TypeError for another dtype."""
    if grey.dtype == np.uint8:
        return grey
    if grey.dtype == np.uint16:
        return np.rint(grey / 257).astype(np.uint8)
    raise TypeError(f"{name}: dtype must be uint8 or uint16, got {grey.dtype}")


def _many_levels(levels: np.ndarray, unknown: np.ndarray, lossy: bool) -> bool:
    if not lossy:
        return int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))) > 3
    between = levels[unknown].astype(np.int16)
    return bool((np.abs(between - np.median(between)) > _LOSSY_SPREAD).mean() > _LOSSY_SHARE)
