# SPDX-License-Identifier: Apache-2.0
"""Anti-aliased coverage of polygons and strands, and smooth noise: what the objects of the generator are drawn with.

Shapes are filled on a canvas of :data:`SUPERSAMPLING` times the size with OpenCV's anti-aliasing and averaged down. Points are
(x, y) in pixels of the final picture, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's coordinates

Array = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Layer:
    """One object of a picture.

    Attributes:
        alpha: (H, W) float32 in [0, 1].
        colour: (H, W, 3) float32 RGB in [0, 1], defined everywhere, not premultiplied.
    """

    alpha: Array
    colour: Array

    def over(self, below: Layer) -> Layer:
        """This layer over another: alpha = a + (1 - a)·b, colours weighted by what is seen of each."""
        seen = (1 - self.alpha) * below.alpha
        alpha = self.alpha + seen
        share = np.divide(self.alpha, alpha, out=np.zeros_like(alpha), where=alpha > 0)[:, :, None]
        return Layer(alpha, below.colour + share * (self.colour - below.colour))


def uniform(rng: Rng, low: float, high: float) -> float:
    """One number from [low, high)."""
    return float(rng.uniform(low, high))


def value_noise(rng: Rng, size: tuple[int, int], cells: float, *, octaves: int = 1, stretch: float = 1.0) -> Array:
    """Fractal value noise: random grids, each twice as fine and half as strong as the one before, interpolated.

    Args:
        size: (H, W).
        cells: of the coarsest grid along the shorter side.
        octaves: how many grids; those finer than two pixels are left out.
        stretch: of the cells along x.
    Returns:
        (H, W) float32, spread over exactly [0, 1].
    """
    height, width = size
    total = np.zeros(size, np.float32)
    side = min(size)
    for octave in range(octaves):
        count = cells * 2**octave
        if octave and count > side / 2:
            break
        rows = max(2, round(count * height / side) + 1)
        columns = max(2, round(count * width / side / stretch) + 1)
        grid = rng.random((rows, columns), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.5**octave)
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def warp(picture: Array, shift_x: Array, shift_y: Array) -> Array:
    """Look a picture up at displaced positions, reflected at its borders.

    Args:
        picture: (H, W) or (H, W, 3) float32. shift_x, shift_y: (H, W) float32, in pixels.
    """
    height, width = picture.shape[:2]
    x = np.arange(width, dtype=np.float32)[None] + shift_x
    y = np.arange(height, dtype=np.float32)[:, None] + shift_y
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def blur(picture: Array, sigma: float) -> Array:
    """Gaussian blur; ``sigma`` in pixels, nothing below a quarter."""
    if sigma < 0.25:
        return picture
    return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def fill_coverage(polygons: Sequence[Array], size: tuple[int, int]) -> Array:
    """Share of each pixel inside a set of polygons, (H, W) float32.

    Args:
        polygons: each (points, 2); their union is filled.
    """
    canvas = _canvas(size)
    for polygon in polygons:
        cv2.fillPoly(canvas, [_fixed(polygon)], 255, cv2.LINE_AA, _SHIFT)
    return _average(canvas, size)


def stroke_coverage(lines: Sequence[Array], size: tuple[int, int], widths: Sequence[float]) -> Array:
    """Share of each pixel covered by lines, (H, W) float32.

    Lines thinner than the supersampled pixel keep its width and lose opacity instead.

    Args:
        lines: each (points, 2).
        widths: of each line, in pixels.
    """
    canvas = _canvas(size)
    scaled = np.asarray(widths, np.float32) * SUPERSAMPLING
    for thickness, opacity, group in _groups(scaled):
        cv2.polylines(canvas, [_fixed(lines[i]) for i in group], False, opacity, thickness, cv2.LINE_AA, _SHIFT)
    return _average(canvas, size)


def paint_strokes(canvas: Array, lines: Sequence[Array], colours: Array, thickness: int) -> None:
    """Draw lines onto an (H, W, 3) uint8 canvas of the final size, in place.

    Args:
        colours: (groups, 3) in [0, 1]; the lines are dealt out to the groups in turn.
    """
    count = len(colours)
    for g, colour in enumerate(colours):
        group = [np.rint(line * 2**_SHIFT).astype(np.int32) for line in lines[g::count]]
        if group:
            cv2.polylines(canvas, group, False, (colour * 255).tolist(), thickness, cv2.LINE_AA, _SHIFT)


def paint_polygons(canvas: Array, polygons: Sequence[Array], colours: Array) -> None:
    """Fill polygons, each in its colour (n, 3) in [0, 1], on an (H, W, 3) uint8 canvas of the final size, in place."""
    for polygon, colour in zip(polygons, colours, strict=True):
        points = np.rint(polygon * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(canvas, [points], (colour * 255).tolist(), cv2.LINE_AA, _SHIFT)


def strands(
    rng: Rng,
    roots: Array,
    angles: Array,
    lengths: Array,
    *,
    bend: float,
    curl: float,
    gravity: float = 0.0,
    points: int = 10,
) -> Array:
    """Curved lines that grow from points: hairs, blades of grass, twigs.

    Args:
        roots: (n, 2). angles: (n,) directions at the root, radians. lengths: (n,) pixels.
        bend: spread of the total turn of a strand, radians. curl: amplitude of a wave in its direction, radians.
        gravity: how far directions turn towards the bottom of the picture along a strand, 0 to 1.
        points: of each line.
    Returns:
        (n, points, 2) float32.
    """
    n = len(roots)
    t = np.linspace(0, 1, points, dtype=np.float32)[None]
    phase = rng.uniform(0, 2 * np.pi, (n, 1)) + rng.uniform(2, 12, (n, 1)) * t
    direction = angles[:, None] + rng.normal(0, bend, (n, 1)) * t + curl * t * np.sin(phase)
    step_x, step_y = np.cos(direction), np.sin(direction) + gravity * t * 1.5
    scale = (lengths / (points - 1))[:, None]
    steps = np.stack([step_x * scale, step_y * scale], 2)
    steps[:, 0] = 0
    return (roots[:, None] + np.cumsum(steps, 1)).astype(np.float32)


def outline(rng: Rng, centre: tuple[float, float], radius: float, *, roughness: float, points: int = 96) -> Array:
    """A closed curve around a centre: a circle, stretched, turned, with random harmonics.

    Args:
        radius: mean, in pixels. roughness: amplitude of the harmonics, 0 to about 0.5.
    Returns:
        (points, 2) float32.
    """
    theta = np.linspace(0, 2 * np.pi, points, endpoint=False)
    harmonics = np.arange(2, 9)
    amplitude = rng.normal(0, roughness, len(harmonics)) / harmonics
    phase = rng.uniform(0, 2 * np.pi, len(harmonics))
    distance = radius * np.maximum(1 + (amplitude * np.cos(theta[:, None] * harmonics + phase)).sum(1), 0.2)
    aspect, turn = np.exp(rng.normal(0, 0.25)), rng.uniform(0, np.pi)
    x, y = distance * np.cos(theta) * aspect, distance * np.sin(theta) / aspect
    rotated = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    return (rotated + np.asarray(centre)).astype(np.float32)


def normals(polygon: Array) -> Array:
    """Angle of the outward normal at each point of a closed curve that runs as :func:`outline` makes them, (points,)."""
    along = np.roll(polygon, -1, 0) - np.roll(polygon, 1, 0)
    return np.arctan2(-along[:, 0], along[:, 1])


def _canvas(size: tuple[int, int]) -> Array:
    return np.zeros((size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), np.uint8)


def _fixed(points: Array) -> Array:
    return np.rint(points * (SUPERSAMPLING * 2**_SHIFT)).astype(np.int32)


def _average(canvas: Array, size: tuple[int, int]) -> Array:
    return cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _groups(widths: Array) -> list[tuple[int, int, Array]]:
    """(thickness, opacity, indices): faint lines first, so that strong ones stay on top."""
    thickness = np.maximum(np.rint(widths), 1).astype(int)
    opacity = np.rint(np.clip(widths, 0.15, 1) * 4).astype(int) * 63 + 3
    keys = thickness * 1000 + opacity
    return [(int(k // 1000), int(k % 1000), np.flatnonzero(keys == k)) for k in np.unique(keys)]
