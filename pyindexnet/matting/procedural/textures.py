# SPDX-License-Identifier: Apache-2.0
"""Colours, textures and backgrounds: (H, W, 3) float32 RGB in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pyindexnet.matting.procedural.raster import (
    Array,
    Rng,
    blur,
    outline,
    paint_polygons,
    paint_strokes,
    strands,
    uniform,
    value_noise,
    warp,
)


def random_colour(rng: Rng) -> Array:
    """A colour as photographs have them: earth, leaf and sky more often than others, mostly pale. (3,) in [0, 1]."""
    hue = (rng.random(), rng.normal(0.08, 0.04), rng.normal(0.27, 0.06), rng.normal(0.58, 0.05))[rng.integers(4)] % 1
    saturation, value = rng.beta(1.2, 2.6), rng.beta(1.6, 1.3)
    sector = (hue * 6 + np.array([5.0, 3.0, 1.0])) % 6
    return value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def palette(rng: Rng, count: int, spread: float, base: Array | None = None) -> Array:
    """Related colours: lightness and tint vary around a base. (count, 3) in [0, 1]."""
    base = random_colour(rng) if base is None else base
    light = rng.normal(0, spread, (count, 1))
    tint = rng.normal(0, spread * 0.35, (count, 3))
    return np.clip(base + (0.3 + base) * light + tint, 0, 1)


def map_colours(values: Array, colours: Array) -> Array:
    """Colour a map of [0, 1] by interpolation between colours (count, 3). (H, W) -> (H, W, 3)."""
    levels = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(colours))
    table = np.stack([np.interp(levels, stops, colours[:, c]) for c in range(3)], 1).astype(np.float32)
    return np.take(table, (values * 255).astype(np.uint8), axis=0)  # three times as fast as indexing


def ramp(rng: Rng, size: tuple[int, int]) -> Array:
    """A linear ramp in a random direction, (H, W) in [0, 1]."""
    angle = uniform(rng, 0, 2 * np.pi)
    y = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[None]
    values = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    return (values - values.min()) / max(float(np.ptp(values)), 1e-6)


def clouds(rng: Rng, size: tuple[int, int]) -> Array:
    """Fractal noise through a palette."""
    noise = value_noise(rng, size, uniform(rng, 1, 12), octaves=int(rng.integers(1, 7)))
    return map_colours(noise, palette(rng, int(rng.integers(2, 5)), 0.25))


def gradient(rng: Rng, size: tuple[int, int]) -> Array:
    """Sky, studio wall: two or three colours along a ramp, a little uneven."""
    values = 0.85 * ramp(rng, size) + 0.15 * value_noise(rng, size, 2, octaves=3)
    return map_colours(values, palette(rng, int(rng.integers(2, 4)), 0.3))


def grain(rng: Rng, size: tuple[int, int]) -> Array:
    """Wood, brushed metal, water: noise much longer than wide, bent."""
    noise = value_noise(rng, size, uniform(rng, 8, 60), octaves=3, stretch=uniform(rng, 6, 40))
    bend = value_noise(rng, size, 2, octaves=2) * np.float32(min(size) * uniform(rng, 0, 0.4))
    noise = warp(noise, bend, bend)
    return map_colours(noise.T.copy() if rng.random() < 0.5 and size[0] == size[1] else noise, palette(rng, 3, 0.2))


def pattern(rng: Rng, size: tuple[int, int]) -> Array:
    """Stripes, checks, bricks, dots: a periodic function in a turned and bent frame."""
    height, width = size
    angle, period = uniform(rng, 0, np.pi), min(size) / uniform(rng, 3, 40)
    bend = (value_noise(rng, size, 3) - 0.5) * np.float32(period * uniform(rng, 0, 2))
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(2 * np.pi / period)
    u = np.cos(angle) * x + np.sin(angle) * y + bend / np.float32(period)
    v = (np.cos(angle) * y - np.sin(angle) * x + bend / np.float32(period)) * np.float32(uniform(rng, 0.4, 2))
    kind = rng.integers(4)
    if kind == 0:
        wave = np.sin(u)
    elif kind == 1:
        wave = np.sin(u) * np.sin(v)
    elif kind == 2:
        wave = np.maximum(np.cos(v), np.cos(u + np.where(np.sin(v / 2) > 0, np.pi, 0)) - 0.1)
    else:
        wave = np.cos(u) + np.cos(v) - 1
    sharp = uniform(rng, 1, 12)
    values = 1 / (1 + np.exp(-sharp * wave))
    values = 0.85 * values + 0.15 * value_noise(rng, size, 20, octaves=3)
    return map_colours(np.clip(values, 0, 1), palette(rng, 3, 0.35))


def dead_leaves(rng: Rng, size: tuple[int, int]) -> Array:
    """Shapes that hide each other, their radii by a power law: the occlusion statistics of natural images."""
    colours = palette(rng, 12, 0.35)
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = (colours[0] * 255).astype(np.uint8)
    side, count = min(size), int(rng.integers(60, 220))
    radii = np.sort(side * 0.015 / np.maximum(rng.random(count), 0.002) ** 0.6)[::-1]  # the small ones in front
    radii = np.minimum(radii, side * 0.5)
    polygons = [outline(rng, (rng.uniform(0, size[1]), rng.uniform(0, size[0])), r, roughness=0.3, points=24) for r in radii]
    paint_polygons(canvas, polygons, np.clip(colours[rng.integers(0, 12, count)] + rng.normal(0, 0.06, (count, 3)), 0, 1))
    return canvas.astype(np.float32) / 255


def bokeh(rng: Rng, size: tuple[int, int]) -> Array:
    """Lights out of focus over a dark or bright ground."""
    ground, side = gradient(rng, size), min(size)
    radius = side * uniform(rng, 0.02, 0.09)
    light = np.zeros((*size, 3), np.float32)
    for colour in palette(rng, int(rng.integers(10, 50)), 0.5):
        centre = (int(rng.integers(0, size[1])), int(rng.integers(0, size[0])))
        disc = np.zeros_like(light)
        cv2.circle(disc, centre, max(1, round(radius * uniform(rng, 0.6, 1.2))), (colour * 0.6).tolist(), -1, cv2.LINE_AA)
        light += disc
    return np.clip(ground * 0.7 + blur(light, radius * 0.12), 0, 1)


def thicket(rng: Rng, size: tuple[int, int]) -> Array:
    """Grass, twigs, hair behind the object: strands that belong to the background."""
    canvas = (clouds(rng, size) * 200).astype(np.uint8)
    side, count = min(size), int(rng.integers(100, 700))
    roots = rng.random((count, 2)) * size[::-1]
    angles = uniform(rng, 0, 2 * np.pi) + rng.normal(0, uniform(rng, 0.1, 1.5), count)
    lengths = side * rng.uniform(0.05, uniform(rng, 0.1, 0.6), count)
    lines = strands(rng, roots, angles, lengths, bend=0.7, curl=uniform(rng, 0, 0.8), points=7)
    paint_strokes(canvas, list(lines), palette(rng, 10, 0.3), max(1, round(side / 320 * uniform(rng, 1, 5))))
    return canvas.astype(np.float32) / 255


def landscape(rng: Rng, size: tuple[int, int]) -> Array:
    """Ground, and sky above a rough horizon."""
    above, below = gradient(rng, size), _simple(rng, size)
    profile = value_noise(rng, (2, size[1]), 0.05, octaves=1)[0] if size[1] < 4 else value_noise(rng, size, 4, octaves=5)[0]
    horizon = size[0] * (uniform(rng, 0.25, 0.75) + (profile - 0.5) * uniform(rng, 0, 0.4))
    edge = np.clip(np.arange(size[0], dtype=np.float32)[:, None] - horizon[None] + 0.5, 0, 1)[:, :, None]
    return above + edge.astype(np.float32) * (below - above)


TEXTURES: tuple[Callable[[Rng, tuple[int, int]], Array], ...] = (
    clouds,
    gradient,
    grain,
    pattern,
    dead_leaves,
    bokeh,
    thicket,
    landscape,
)


def _simple(rng: Rng, size: tuple[int, int]) -> Array:
    return (clouds, gradient, grain, pattern, dead_leaves)[rng.integers(5)](rng, size)


def texture(rng: Rng, size: tuple[int, int], base: Array | None = None) -> Array:
    """Surface of an object: one of the simple textures, pulled towards a colour, lit from a side.

    Args:
        base: (3,) the colour; None: whatever the texture has.
    """
    surface = _simple(rng, size)
    if base is not None:
        surface = surface + np.float32(uniform(rng, 0.4, 0.9)) * (base.astype(np.float32) - surface)
    return light(rng, surface)


def light(rng: Rng, surface: Array) -> Array:
    """Uneven light: a ramp and soft shadows multiply the colours."""
    size = surface.shape[:2]
    shade = 1 + uniform(rng, 0, 0.5) * (ramp(rng, size) - 0.5) + uniform(rng, 0, 0.5) * (value_noise(rng, size, 3) - 0.5)
    return np.clip(surface * shade[:, :, None].astype(np.float32), 0, 1)


def background(rng: Rng, size: tuple[int, int]) -> Array:
    """What stands behind the object: one or two textures, lit, often out of focus."""
    picture = TEXTURES[rng.integers(len(TEXTURES))](rng, size)
    if rng.random() < 0.35:
        other = TEXTURES[rng.integers(len(TEXTURES))](rng, size)
        steep = uniform(rng, 2, 40)
        mask = np.clip((value_noise(rng, size, uniform(rng, 1, 6), octaves=3) - 0.5) * steep + 0.5, 0, 1)
        picture = picture + mask[:, :, None] * (other - picture)
    if rng.random() < 0.55:
        picture = blur(picture, min(size) * uniform(rng, 0.001, 0.02))
    return light(rng, np.ascontiguousarray(picture, np.float32))
