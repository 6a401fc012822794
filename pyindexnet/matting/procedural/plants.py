# SPDX-License-Identifier: Apache-2.0
"""Plants: foliage, fronds, crowns of trees, grass. Each returns a :class:`Layer`."""

from __future__ import annotations

import numpy as np

from pyindexnet.matting.procedural.objects import Size, place
from pyindexnet.matting.procedural.raster import (
    Array,
    Layer,
    Rng,
    fill_coverage,
    outline,
    paint_polygons,
    paint_strokes,
    strands,
    stroke_coverage,
    uniform,
    value_noise,
)
from pyindexnet.matting.procedural.textures import palette, random_colour, texture


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


def frond(rng: Rng, size: Size) -> Layer:
    """Leaves of ferns and palms, fans, twigs of needles: leaflets in order along a midrib or around a point."""
    side = min(size)
    kind, count = int(rng.integers(4)), int(rng.integers(1, 5))
    centre, _ = place(rng, size, 0.1, 0.2)
    roots = np.asarray(centre) + rng.normal(0, side * 0.2, (count, 2))
    angles = rng.uniform(0, 2 * np.pi, count)
    lengths = side * uniform(rng, 0.35, 1.0) * rng.uniform(0.6, 1, count)
    if kind == 0:  # a fan
        each = int(rng.integers(9, 45))
        arc = uniform(rng, 0.6, np.pi)
        stems, along = np.repeat(roots, each, 0), np.repeat(angles, each) + np.tile(np.linspace(-arc, arc, each), count)
        reach = 0.5 * np.repeat(lengths, each) * rng.uniform(0.75, 1, len(stems))
        width = reach * uniform(rng, 0.5, 1.6) * 2 * arc / each
        ribs = []
    else:
        points = int(rng.integers(14, 60))
        midribs = strands(rng, roots, angles, lengths, bend=uniform(rng, 0, 0.9), curl=0.1, points=points)
        step = np.gradient(midribs, axis=1)
        forward = np.arctan2(step[:, :, 1], step[:, :, 0])
        t = np.linspace(0, 1, points)
        profile = np.sin(np.pi * (0.12 + 0.86 * t) ** uniform(rng, 0.5, 1.4))
        opening = uniform(rng, 0.5, 1.4)
        stems = np.tile(midribs, (1, 2, 1)).reshape(-1, 2)
        along = np.concatenate([forward - opening, forward + opening], 1).ravel() + rng.normal(0, 0.06, len(stems))
        reach = np.tile(lengths[:, None] * uniform(rng, 0.12, 0.4) * profile, (1, 2)).ravel()
        reach *= rng.uniform(0.85, 1, len(stems))
        gap = np.repeat(lengths / points, 2 * points)
        width = gap * (uniform(rng, 0.1, 0.35) if kind == 1 else uniform(rng, 0.5, 1.3))  # needles or leaflets
        ribs = list(midribs)
    spines = strands(rng, stems, along, reach, bend=uniform(rng, 0, 0.5), curl=0, points=8)
    alpha = fill_coverage(_ribbons(spines, width), size)
    base = _leaf_colour(rng)
    canvas = (texture(rng, size, base) * 255).astype(np.uint8)
    paint_polygons(canvas, _ribbons(spines, width * 1.2 + 1), palette(rng, len(spines), uniform(rng, 0.03, 0.15), base))
    if ribs:
        thickness = side * uniform(rng, 0.003, 0.012)
        alpha = np.maximum(alpha, stroke_coverage(ribs, size, [thickness] * len(ribs)))
        paint_strokes(canvas, ribs, palette(rng, 1, 0.2, base), max(1, round(thickness)))
    return Layer(alpha, _shaded(rng, canvas))


def crown(rng: Rng, size: Size) -> Layer:
    """A tree or shrub: bunches of small leaves, dense inside and open at the rim, on branches."""
    side = min(size)
    centre, radius = place(rng, size, 0.15, 0.4)
    bunches, each = int(rng.integers(6, 40)), int(rng.integers(10, 60))
    rim = outline(rng, centre, radius, roughness=0.4, points=bunches)
    heart = np.asarray(centre) + (rim - centre) * np.sqrt(rng.random((bunches, 1)))
    spread = radius * uniform(rng, 0.1, 0.3)
    stems = np.repeat(heart, each, 0) + rng.normal(0, spread, (bunches * each, 2))
    length = side * uniform(rng, 0.012, 0.06)
    leaves = _leaves(rng, stems, rng.uniform(0, 2 * np.pi, len(stems)), length * rng.uniform(0.5, 1.3, len(stems)))
    foot = np.array([centre[0] + rng.normal(0, 0.2) * radius, centre[1] + radius * uniform(rng, 1, 2)])
    fork = np.asarray(centre) + (foot - centre) * uniform(rng, 0.1, 0.6)
    branches = [
        np.stack([foot, fork]),
        *(np.stack([fork, (fork + end) / 2 + rng.normal(0, spread / 2, 2), end]) for end in heart),
    ]
    trunk = radius * uniform(rng, 0.04, 0.2)
    widths = [trunk, *(trunk * rng.uniform(0.08, 0.4, bunches))]
    base, bark = _leaf_colour(rng), np.array([0.45, 0.35, 0.25]) * uniform(rng, 0.4, 1.6)
    alpha = np.maximum(fill_coverage(leaves, size), stroke_coverage(branches, size, widths))
    canvas = (texture(rng, size, base * 0.6) * 255).astype(np.uint8)
    for line, width in zip(branches, widths, strict=True):
        paint_strokes(canvas, [line], palette(rng, 1, 0.05, bark.clip(0, 1)), max(1, round(width * 1.3)))
    height = (np.repeat(heart[:, 1], each) - centre[1]) / radius  # brighter at the top
    shades = palette(rng, len(leaves), 0.12, base) * (1 - uniform(rng, 0, 0.4) * height.clip(-1, 1))[:, None]
    paint_polygons(canvas, [leaf + (leaf - leaf.mean(0)) * 0.2 for leaf in leaves], shades.clip(0, 1))
    return Layer(alpha, _shaded(rng, canvas))


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
    width = side * float(np.exp(uniform(rng, np.log(0.002), np.log(0.04))))
    blades = _ribbons(spines, width * rng.uniform(0.5, 1.2, count))
    canvas = (texture(rng, size, _leaf_colour(rng)) * 255).astype(np.uint8)
    paint_polygons(canvas, _ribbons(spines, np.full(count, width * 1.5 + 1)), palette(rng, count, 0.18, _leaf_colour(rng)))
    alpha = fill_coverage(blades, size)
    return Layer(alpha, canvas.astype(np.float32) / 255)


def _shaded(rng: Rng, canvas: Array) -> Array:
    """Colours of a canvas under uneven light, which a photograph of a plant has."""
    amount = uniform(rng, 0, 0.6)
    shade = 1 - np.float32(amount) * value_noise(rng, canvas.shape[:2], uniform(rng, 2, 12), octaves=2)
    return canvas.astype(np.float32) / 255 * shade[:, :, None]


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
