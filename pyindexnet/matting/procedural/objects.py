# SPDX-License-Identifier: Apache-2.0
"""Foreground objects drawn as lines and polygons: solids, hair, fur. Each returns a :class:`Layer`."""

from __future__ import annotations

import numpy as np

from pyindexnet.matting.procedural.raster import (
    Array,
    Layer,
    Rng,
    blur,
    fill_coverage,
    normals,
    outline,
    paint_strokes,
    strands,
    stroke_coverage,
    uniform,
    value_noise,
)
from pyindexnet.matting.procedural.textures import palette, random_colour, texture

Size = tuple[int, int]


def place(rng: Rng, size: Size, low: float, high: float) -> tuple[tuple[float, float], float]:
    """Centre and radius of an object; the radius in shares of the shorter side."""
    side = min(size)
    centre = size[1] * uniform(rng, 0.2, 0.8), size[0] * uniform(rng, 0.2, 0.8)
    return centre, side * uniform(rng, low, high)


def line_width(rng: Rng, size: Size) -> float:
    """Typical width of a strand in pixels: thinner than one, up to a few; grows with the picture."""
    return float(np.exp(rng.uniform(np.log(0.35), np.log(2.2)))) * max(min(size) / 320, 0.5) ** 0.5


def solid(rng: Rng, size: Size) -> Layer:
    """Opaque bodies: rounded outlines, polygons, bars, rings with a hole."""
    centre, radius = place(rng, size, 0.15, 0.42)
    kind = rng.integers(4)
    if kind == 0:
        alpha = fill_coverage([outline(rng, centre, radius, roughness=uniform(rng, 0.05, 0.5))], size)
    elif kind == 1:
        corners = outline(rng, centre, radius, roughness=0.4, points=int(rng.integers(3, 9)))
        alpha = fill_coverage([corners], size)
    elif kind == 2:
        outer = fill_coverage([outline(rng, centre, radius, roughness=0.15)], size)
        inner = fill_coverage([outline(rng, centre, radius * uniform(rng, 0.3, 0.8), roughness=0.15)], size)
        alpha = np.maximum(outer - inner, 0)
    else:
        count = int(rng.integers(3, 14))
        ends = rng.random((count, 2, 2)) * size[::-1]
        widths = min(size) * rng.uniform(0.004, 0.05, count)
        alpha = stroke_coverage(list(ends), size, widths.tolist())
    return Layer(alpha, texture(rng, size, random_colour(rng)))


def hair(rng: Rng, size: Size) -> Layer:
    """A head: a body of hair with hundreds of strands that leave it in locks, short and wild or long and hanging."""
    side = min(size)
    centre, radius = place(rng, size, 0.14, 0.3)
    head = outline(rng, centre, radius, roughness=0.12)
    base, width = _coat_colour(rng), 0.7 * line_width(rng, size)
    locks, each = int(rng.integers(8, 45)), int(rng.integers(6, 30))
    index = rng.integers(0, len(head), locks)
    direction = normals(head)[index] + rng.normal(0, uniform(rng, 0.2, 1.0), locks)
    spread = uniform(rng, 0.01, 0.07) * side
    roots = np.repeat(head[index], each, 0) + rng.normal(0, spread, (locks * each, 2))
    angles = np.repeat(direction, each) + rng.normal(0, uniform(rng, 0.05, 0.35), locks * each)
    long = rng.random() < 0.4
    lengths = side * (uniform(rng, 0.3, 0.7) if long else uniform(rng, 0.08, 0.4)) * rng.uniform(0.35, 1, locks * each)
    curl, gravity = uniform(rng, 0, 1.4) * (rng.random() < 0.6), uniform(rng, 1, 3) if long else uniform(rng, -0.2, 1.2)
    lines = strands(rng, roots, angles, lengths, bend=uniform(rng, 0.1, 0.9), curl=curl, gravity=gravity, points=12)
    widths = width * rng.lognormal(0, 0.25, len(lines))
    half = len(lines) // 2
    alpha = fill_coverage([head], size)
    # two sheets, so that hairs of one show through those of the other
    for part in (slice(0, half), slice(half, None)):
        sheet = stroke_coverage(list(lines[part]), size, widths[part].tolist())
        tips = stroke_coverage([line[:7] for line in lines[part]], size, (widths[part] * 1.4).tolist())
        alpha = 1 - (1 - alpha) * (1 - np.maximum(sheet * np.float32(uniform(rng, 0.6, 1)), tips))
    coat = _coat(rng, centre, radius, radius * uniform(rng, 0.3, 1), int(rng.integers(100, 500)), points=12)
    colour = _strand_colours(rng, size, base, np.concatenate([coat, lines]), width)
    if long or rng.random() < 0.4:
        colour = _face(rng, size, colour, centre, radius)
    if rng.random() < 0.6:  # a body below the head
        below = (centre[0] + radius * uniform(rng, -0.4, 0.4), size[0] + radius * uniform(rng, -0.4, 0.4))
        body = fill_coverage([outline(rng, below, radius * uniform(rng, 1.3, 2), roughness=0.1)], size)
        return Layer(alpha, colour).over(Layer(body, texture(rng, size)))
    return Layer(alpha, colour)


def fur(rng: Rng, size: Size) -> Layer:
    """A body whose outline is thousands of short hairs that follow its normals."""
    side = min(size)
    centre, radius = place(rng, size, 0.18, 0.38)
    body = outline(rng, centre, radius, roughness=uniform(rng, 0.1, 0.4), points=360)
    count = int(rng.integers(700, 2200))
    index = rng.integers(0, len(body), count)
    length = side * uniform(rng, 0.02, 0.12)
    comb = uniform(rng, -1.1, 1.1)  # the way the fur lies
    field = (value_noise(rng, (36, 10), 4).ravel()[: len(body)] - 0.5) * uniform(rng, 0, 2)
    angles = normals(body)[index] + comb + field[index] + rng.normal(0, uniform(rng, 0.1, 0.5), count)
    depth = rng.random(count)[:, None] * length * 0.8
    inward = -np.stack([np.cos(normals(body)[index]), np.sin(normals(body)[index])], 1)
    lines = strands(
        rng,
        body[index] + inward * depth,
        angles,
        length * rng.uniform(0.5, 1.3, count),
        bend=uniform(rng, 0.1, 0.8),
        curl=uniform(rng, 0, 0.6),
        points=6,
    )
    width = line_width(rng, size)
    base = _coat_colour(rng)
    thick = stroke_coverage([line[:4] for line in lines], size, (width * 1.5 * rng.lognormal(0, 0.2, count)).tolist())
    thin = stroke_coverage(list(lines), size, (width * 0.7 * rng.lognormal(0, 0.2, count)).tolist())
    alpha = np.maximum(fill_coverage([body], size), 1 - (1 - thick) * (1 - thin))
    coat = _coat(rng, centre, radius, length, count)
    return Layer(alpha, _strand_colours(rng, size, base, np.concatenate([coat, lines]), width))


def _strand_colours(rng: Rng, size: Size, base: Array, lines: Array, width: float) -> Array:
    """Colours of a coat of hair: strands lighter and darker than their base."""
    canvas = (texture(rng, size, base) * 255).astype(np.uint8)
    shades = palette(rng, 10, uniform(rng, 0.05, 0.22), base)
    paint_strokes(canvas, list(lines), shades, max(1, round(width * 1.5)))
    return canvas.astype(np.float32) / 255


def _face(rng: Rng, size: Size, colour: Array, centre: tuple[float, float], radius: float) -> Array:
    """Skin in the middle of a head, with a soft edge; it only colours what is opaque anyway."""
    skin = np.array([1.0, 0.72, 0.55]) * uniform(rng, 0.25, 1)
    mask = fill_coverage([outline(rng, centre, radius * uniform(rng, 0.5, 0.75), roughness=0.05)], size)
    mask = blur(mask, radius * 0.06)[:, :, None]
    return colour + mask * (texture(rng, size, skin) - colour)


def _coat(rng: Rng, centre: tuple[float, float], radius: float, length: float, count: int, points: int = 6) -> Array:
    """Hairs that lie on a body and only colour it, combed one way."""
    roots = np.asarray(centre) + rng.normal(0, radius * 0.6, (count, 2))
    angles = uniform(rng, 0, 2 * np.pi) + rng.normal(0, 0.4, count)
    return strands(rng, roots, angles, np.full(count, length), bend=0.5, curl=0.2, points=points)


def _coat_colour(rng: Rng) -> Array:
    """Black to brown, fair, red or grey; sometimes anything."""
    if rng.random() < 0.3:
        return random_colour(rng)
    stops = np.array([[0.05, 0.04, 0.04], [0.3, 0.18, 0.1], [0.55, 0.3, 0.12], [0.85, 0.7, 0.45], [0.8, 0.78, 0.75]])
    at = uniform(rng, 0, len(stops) - 1.001)
    return stops[int(at)] + (at % 1) * (stops[int(at) + 1] - stops[int(at)])
