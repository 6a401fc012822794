# SPDX-License-Identifier: Apache-2.0
"""One training item from decoded pictures: geometry, trimap, colours, composition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pyindexnet.matting.data import colour
from pyindexnet.matting.data.geometry import Frame, affine, cover_factor, crop_around, scaling, seed_pixel, warp
from pyindexnet.matting.data.recipes import Recipe
from pyindexnet.matting.data.strong import apply_strong
from pyindexnet.matting.data.trimap import draw_trimap

#: (H, W, 3) uint8 RGB and (H, W) uint8 of one foreground.
Layer = tuple[np.ndarray, np.ndarray]
Item = dict[str, Any]


def compose_item(
    layers: Sequence[Layer], background: np.ndarray, recipe: Recipe, rng: np.random.Generator, name: str = ""
) -> Item:
    """Augment foregrounds, put them over a background, and draw the trimap.

    image = alpha * foreground + (1 - alpha) * background holds for what is returned, to float32 rounding, unless ``relabel``.

    Args:
        layers: one foreground, or two, the second behind the first and stretched to its size.
        background: (H, W, 3) uint8 RGB.
        recipe: see :class:`Recipe`; ``combine`` is the caller's, who chooses the layers.
        rng: all that is random.
        name: of the item.
    Returns:
        image, foreground, background (3, S, S) and alpha (1, S, S) float32 in [0, 1]; trimap (1, S, S) float32 of 0, 0.5, 1;
        name; relabel: whether the composite was changed in a way that alpha does not fit, see :class:`Strong`.
    Raises:
        TypeError, ValueError: a layer or the background has another shape or dtype.
    """
    for pixels, alpha in layers:
        _check_pictures(pixels, alpha)
    _check_pictures(background, None)
    frame = _draw_frame(layers[0][1], recipe, rng)
    radii = rng.integers(recipe.radius[0], recipe.radius[1] + 1, 2)
    outside, inside = (int(radii[0]), int(radii[1 if recipe.separate_radii else 0]))
    foreground, wide = _merge([_warped(layer, layers[0], frame, max(outside, inside)) for layer in layers])
    if rng.random() < recipe.gamma:
        gamma, from_opaque = colour.draw_gamma(rng)
        wide = colour.gamma_alpha(wide, gamma, from_opaque=from_opaque)
    inner = slice(max(outside, inside), max(outside, inside) + recipe.size)
    trimap = draw_trimap(wide, outside, inside, method=recipe.trimap)[inner, inner]
    alpha = wide[inner, inner].astype(np.float32) / np.float32(255)
    behind = _cropped_background(background, recipe.size, rng)
    foreground, behind = _coloured(foreground, behind, recipe, rng)
    operation = None
    if recipe.strong is not None:
        foreground, behind, operation = apply_strong(recipe.strong, foreground, behind, rng)
    image = behind + alpha[..., None] * (foreground - behind)
    if operation is not None:
        image = operation(image)
    return {
        "image": _to_tensor(image),
        "trimap": torch.from_numpy(((trimap > 0).astype(np.float32) + (trimap == 255)) / 2)[None],
        "alpha": torch.from_numpy(alpha)[None],
        "foreground": _to_tensor(foreground),
        "background": _to_tensor(behind),
        "name": name,
        "relabel": operation is not None,
    }


def _check_pictures(pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"compose_item: pictures must be (H, W, 3), got {pixels.shape}")
    if alpha is not None and alpha.shape != pixels.shape[:2]:
        raise ValueError(f"compose_item: alpha must be {pixels.shape[:2]}, got {alpha.shape}")
    for array in (pixels,) if alpha is None else (pixels, alpha):
        if array.dtype != np.uint8:
            raise TypeError(f"compose_item: pictures must be uint8, got {array.dtype}")


def _draw_frame(alpha: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> Frame:
    matrix = np.eye(3)
    if rng.random() < recipe.resize:
        matrix = scaling(recipe.resize_to / alpha.shape[1], recipe.resize_to / alpha.shape[0])
    if rng.random() < recipe.affine:
        zoom = 2 ** rng.uniform(*np.log2(recipe.zoom))  # as often larger as smaller
        matrix = affine(rng.uniform(-1, 1) * recipe.rotation, zoom, rng.uniform(-1, 1) * recipe.shear) @ matrix
    if rng.random() < recipe.flip:
        matrix = scaling(-1, 1) @ matrix
    factor = recipe.size / recipe.crop_sides[rng.integers(len(recipe.crop_sides))]
    factor = max(factor, cover_factor(matrix, alpha.shape, recipe.size))
    return crop_around(scaling(factor, factor) @ matrix, seed_pixel(alpha, rng), alpha.shape, recipe.size)


def _warped(layer: Layer, first: Layer, frame: Frame, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the crop, float32 in [0, 1]; alpha of the crop and ``margin`` pixels around it, which the trimap may need."""
    pixels, alpha = layer
    frame = frame.of_resized(first[1].shape, alpha.shape)
    colours = warp(pixels, frame, border=cv2.BORDER_REPLICATE)
    # An object that the edge of its picture cuts goes on behind an edge of the crop; within a turned crop it ends there.
    turned = bool(frame.matrix[[0, 1], [1, 0]].any())
    border = cv2.BORDER_CONSTANT if turned else cv2.BORDER_REPLICATE
    return colours.astype(np.float32) / np.float32(255), warp(alpha, frame.grown(margin), border=border)


def _merge(layers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The first layer over the second, as one foreground.

    alpha = 1 - (1 - a1) (1 - a2), F = (a1 F1 + (1 - a1) a2 F2) / alpha. A second layer that would leave nothing of the
    background is dropped: there would be nothing to estimate.
    """
    (colours, wide), *others = layers
    for below, below_wide in others:
        front, back = (w.astype(np.float32) / np.float32(255) for w in (wide, below_wide))
        merged = np.rint(255 * (1 - (1 - front) * (1 - back))).astype(np.uint8)
        margin = (wide.shape[0] - colours.shape[0]) // 2
        inner = slice(margin, margin + colours.shape[0])
        if merged[inner, inner].min() == 255:
            continue
        a1, a2 = front[inner, inner, None], back[inner, inner, None]
        a2 = (1 - a1) * a2
        total = a1 + a2
        share = np.divide(a2, total, out=np.zeros_like(total), where=total > 0)
        colours, wide = colours + share * (below - colours), merged
    return colours, wide


def _cropped_background(background: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a background, at least half of its shorter side, (size, size, 3) float32 in [0, 1]."""
    shorter = min(background.shape[:2])
    side = int(rng.integers(min(shorter, max(shorter // 2, size)), shorter + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in background.shape[:2])
    crop = background[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=interpolation)
    return resized.astype(np.float32) / np.float32(255)


def _coloured(
    foreground: np.ndarray, background: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < recipe.jitter:
        shifts = rng.uniform(-1, 1, 3) * (recipe.hue, recipe.saturation, recipe.value)
        foreground = colour.shift_hsv(foreground, *map(float, shifts))
    if rng.random() < recipe.pull:
        foreground = colour.pull_to_colour(foreground, rng.random(3), float(rng.random()))
    if rng.random() < recipe.invert:
        foreground = 1 - foreground
    if rng.random() < recipe.permute:
        foreground = foreground[..., rng.permutation(3)]
    if rng.random() < recipe.blur:
        sigma = rng.uniform(0.5, 2)
        foreground, background = (cv2.GaussianBlur(np.ascontiguousarray(x), (0, 0), sigma) for x in (foreground, background))
    return foreground, background


def _to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))
