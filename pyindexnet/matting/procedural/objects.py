# SPDX-License-Identifier: Apache-2.0
"""Foreground objects drawn as lines and polygons: solids, hair, fur, foliage, grass. Each returns a :class:`Layer`."""

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
    paint_polygons,
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


def foliage(rng: Rng, size: Size) -> Layer:
    """Twigs with leaves that overlap; gaps between them show the background."""
    side = min(size)
    count = int(rng.integers(2, 9))
    edge = rng.random((count, 2)) * size[::-1]
    edge[np.arange(count), rng.integers(0, 2, count)] *= 0.15
    centre, _ = place(rng, size, 0.1, 0.2)
    towards = np.arctan2(centre[1] - edge[:, 1], centre[0] - edge[:, 0]) + rng.normal(0, 0.4, count)
    twigs = strands(rng, edge, towards, side * rng.uniform(0.4, 1.1, count), bend=0.7, curl=0.3, points=24)
    length = side * uniform(rng, 0.035, 0.16)
    each = int(rng.integers(8, 30))
    points = rng.integers(1, 24, (count, each))
    stems = np.take_along_axis(twigs, points[:, :, None], 1).reshape(-1, 2)
    along = (towards[:, None] + rng.choice([-1, 1], (count, each)) * rng.uniform(0.3, 1.5, (count, each))).ravel()
    leaves = _leaves(rng, stems, along, length * rng.uniform(0.5, 1.2, len(stems)))
    colours = palette(rng, len(leaves), 0.16, _leaf_colour(rng))
    alpha = np.maximum(
        fill_coverage(leaves, size), stroke_coverage(list(twigs), size, (length * rng.uniform(0.04, 0.16, count)).tolist())
    )
    canvas = (texture(rng, size, random_colour(rng) * 0.6) * 255).astype(np.uint8)
    grown = [leaf + (leaf - leaf.mean(0)) * 0.12 for leaf in leaves]  # the colour reaches past the edge
    paint_polygons(canvas, grown, colours)
    veins = [np.stack([leaf[0], leaf[len(leaf) // 2]]) for leaf in leaves]
    paint_strokes(canvas, veins, np.clip(colours[:6] + uniform(rng, -0.15, 0.25), 0, 1), 1)
    return Layer(alpha, canvas.astype(np.float32) / 255)


def grass(rng: Rng, size: Size) -> Layer:
    """Blades, needles or feathers that grow from a line or a point, each tapering to a tip."""
    side, count = min(size), int(rng.integers(30, 260))
    if rng.random() < 0.5:
        roots = np.stack([rng.uniform(0, size[1], count), np.full(count, size[0] * uniform(rng, 0.6, 1.05))], 1)
        angles = -np.pi / 2 + rng.normal(0, 0.3, count)
    else:
        centre, _ = place(rng, size, 0.1, 0.2)
        roots = np.asarray(centre) + rng.normal(0, side * 0.02, (count, 2))
        angles = rng.uniform(0, 2 * np.pi, count)
    lengths = side * uniform(rng, 0.2, 0.6) * rng.uniform(0.3, 1, count)
    spines = strands(rng, roots, angles, lengths, bend=0.6, curl=0.2, gravity=uniform(rng, -0.2, 0.8), points=10)
    width = side * uniform(rng, 0.002, 0.02)
    blades = _ribbons(spines, width * rng.uniform(0.5, 1.2, count))
    canvas = (texture(rng, size, _leaf_colour(rng)) * 255).astype(np.uint8)
    paint_polygons(canvas, _ribbons(spines, np.full(count, width * 1.5 + 1)), palette(rng, count, 0.18, _leaf_colour(rng)))
    alpha = fill_coverage(blades, size)
    return Layer(alpha, canvas.astype(np.float32) / 255)


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


def _leaf_colour(rng: Rng) -> Array:
    """Green mostly, sometimes autumn or anything."""
    if rng.random() < 0.25:
        return random_colour(rng)
    green = uniform(rng, 0.2, 0.75)
    return np.array([green * uniform(rng, 0.3, 1.3), green, green * uniform(rng, 0.1, 0.6)]).clip(0, 1)


def _leaves(rng: Rng, stems: Array, angles: Array, lengths: Array) -> list[Array]:
    """Leaf outlines of one species: a width profile along the midrib, smooth, pointed or lobed."""
    t = np.linspace(0, 1, 16)
    shape, lobes = uniform(rng, 0.5, 1.6), int(rng.integers(0, 6))
    profile = np.sin(np.pi * t**shape) * uniform(rng, 0.12, 0.42)
    profile = profile * (1 - 0.45 * (lobes > 2) * np.abs(np.sin(np.pi * lobes * t)))
    upper, lower = np.stack([t, profile], 1), np.stack([t[::-1], -profile[::-1]], 1)[1:-1]
    leaf = np.concatenate([upper, lower])
    flat = rng.uniform(0.25, 1, len(stems))  # turned away from the camera
    x = leaf[None, :, 0] * lengths[:, None]
    y = leaf[None, :, 1] * (lengths * flat)[:, None]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    points = np.stack([x * cos - y * sin, x * sin + y * cos], 2) + stems[:, None]
    return list(points.astype(np.float32))


def _ribbons(spines: Array, widths: Array) -> list[Array]:
    """Polygons around lines (n, points, 2), as wide as told at the root and pointed at the tip."""
    along = np.gradient(spines, axis=1)
    along /= np.maximum(np.linalg.norm(along, axis=2, keepdims=True), 1e-6)
    across = np.stack([-along[:, :, 1], along[:, :, 0]], 2)
    taper = np.sqrt(1 - np.linspace(0, 1, spines.shape[1]))[None, :, None]
    offset = across * taper * widths[:, None, None] / 2
    return list(np.concatenate([spines + offset, (spines - offset)[:, ::-1]], 1).astype(np.float32))
