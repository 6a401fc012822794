# SPDX-License-Identifier: Apache-2.0
"""Foreground objects of partial opacity: lace, nets, veils, smoke, fire, glass, bubbles; and the camera's blur."""

from __future__ import annotations

import cv2
import numpy as np

from pyindexnet.matting.procedural.objects import Size, line_width, place, solid
from pyindexnet.matting.procedural.raster import (
    Array,
    Layer,
    Rng,
    blur,
    fill_coverage,
    outline,
    stroke_coverage,
    uniform,
    value_noise,
    warp,
)
from pyindexnet.matting.procedural.textures import map_colours, palette, random_colour, texture


def net(rng: Rng, size: Size) -> Layer:
    """Fences, nets, webs and sieves: threads or holes of analytic coverage in a bent sheet."""
    side = min(size)
    period = side * uniform(rng, 0.02, 0.14)
    u, v = _sheet(rng, size, period)
    thread = max(line_width(rng, size), period * uniform(rng, 0.03, 0.2))
    kind = rng.integers(4)
    if kind == 0:  # threads both ways
        distance = np.minimum(_to_line(u), _to_line(v))
        alpha = _cover(thread / 2 - distance * period)
    elif kind == 1:  # one way, a blind or a rack
        alpha = _cover(thread / 2 - _to_line(u) * period)
    elif kind == 2:  # chain link: two families of waves
        wave = 0.25 * np.sin(2 * np.pi * v)
        distance = np.minimum(_to_line(u + wave), _to_line(u - wave + 0.5))
        alpha = _cover(thread / 2 - distance * period)
    else:  # holes in a sheet
        radius = uniform(rng, 0.2, 0.46)
        shift = 0.5 * (np.floor(v) % 2) * (rng.random() < 0.5)
        distance = np.hypot((u + shift) % 1 - 0.5, v % 1 - 0.5)
        alpha = _cover((distance - radius) * period)
    centre, radius = place(rng, size, 0.22, 0.6)  # some of the frame stays known background
    alpha = alpha * fill_coverage([outline(rng, centre, radius, roughness=0.3)], size)
    return Layer(alpha, texture(rng, size, random_colour(rng)))


def lace(rng: Rng, size: Size) -> Layer:
    """Fine cloth: a mesh, with rosettes of denser thread and a solid border, in an outline that bends."""
    side = min(size)
    period = side * uniform(rng, 0.05, 0.16)
    u, v = _sheet(rng, size, period)
    radius, angle = np.hypot(u % 1 - 0.5, v % 1 - 0.5), np.arctan2(v % 1 - 0.5, u % 1 - 0.5)
    petals = int(rng.integers(3, 9))
    rosette = uniform(rng, 0.18, 0.34) * (1 + 0.35 * np.cos(petals * angle))
    flower = _cover((0.05 - np.abs(radius - rosette)) * period) * uniform(rng, 0.7, 1)
    finer = period / int(rng.integers(4, 9))
    mesh_u, mesh_v = (u + v) * period / finer, (u - v) * period / finer
    thread = max(0.4, finer * uniform(rng, 0.1, 0.25))
    mesh = _cover(thread / 2 - np.minimum(_to_line(mesh_u), _to_line(mesh_v)) * finer) * uniform(rng, 0.3, 0.9)
    centre, extent = place(rng, size, 0.25, 0.45)
    shape = outline(rng, centre, extent, roughness=0.3)
    border = stroke_coverage([np.concatenate([shape, shape[:1]])], size, [side * uniform(rng, 0.004, 0.02)])
    alpha = np.maximum(np.maximum(flower, mesh) * fill_coverage([shape], size), border)
    return Layer(alpha, texture(rng, size, random_colour(rng)))


def veil(rng: Rng, size: Size) -> Layer:
    """Thin cloth: partial opacity that grows in the folds, and a hem."""
    side = min(size)
    centre, radius = place(rng, size, 0.25, 0.48)
    shape = outline(rng, centre, radius, roughness=0.35)
    folds = value_noise(rng, size, uniform(rng, 3, 10), octaves=3, stretch=uniform(rng, 0.1, 8))
    bend = (value_noise(rng, size, 2, octaves=2) - 0.5) * np.float32(side * 0.5)
    folds = warp(folds, bend, -bend)
    ridges = (1 - np.abs(2 * folds - 1)) ** uniform(rng, 1, 5)
    opacity = np.clip(uniform(rng, 0.1, 0.6) + uniform(rng, 0.2, 0.8) * ridges, 0, 1)
    hem = stroke_coverage([np.concatenate([shape, shape[:1]])], size, [side * uniform(rng, 0.003, 0.015)])
    alpha = np.maximum(opacity * fill_coverage([shape], size), hem * uniform(rng, 0.4, 1))
    colour = np.clip(texture(rng, size, random_colour(rng)) + 0.3 * (ridges[:, :, None] - 0.5), 0, 1)
    return Layer(alpha.astype(np.float32), colour.astype(np.float32))


def smoke(rng: Rng, size: Size) -> Layer:
    """Smoke, steam, clouds, fire: fractal noise, warped by itself, that fades towards the edge of a plume."""
    side = min(size)
    density = value_noise(rng, size, uniform(rng, 1.5, 5), octaves=6)
    for _ in range(2):
        reach = np.float32(side * uniform(rng, 0.05, 0.25))
        density = warp(density, *((value_noise(rng, size, 3, octaves=3) - 0.5) * reach for _ in range(2)))
    centre, radius = place(rng, size, 0.25, 0.42)
    plume = blur(fill_coverage([outline(rng, centre, radius, roughness=0.4)], size), side * uniform(rng, 0.03, 0.1))
    threshold = uniform(rng, 0.15, 0.45)
    alpha = np.clip((density * plume - threshold * 0.5) / uniform(rng, 0.2, 0.6), 0, uniform(rng, 0.6, 1.0))
    fire = rng.random() < 0.3
    stops = np.array([[0.3, 0.02, 0], [0.9, 0.25, 0.02], [1, 0.7, 0.1], [1, 0.95, 0.7]]) if fire else _greys(rng)
    return Layer(alpha.astype(np.float32), map_colours(np.clip(density * uniform(rng, 0.8, 1.3), 0, 1), stops))


def glass(rng: Rng, size: Size) -> Layer:
    """A vessel or a pane: nearly clear inside, opaque where its edge turns away, with reflections."""
    side = min(size)
    centre, radius = place(rng, size, 0.2, 0.42)
    shape = fill_coverage([outline(rng, centre, radius, roughness=0.25)], size)
    inside = cv2.distanceTransform((shape > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    edge = np.exp(-inside / np.float32(side * uniform(rng, 0.006, 0.05)))
    streaks = warp(
        value_noise(rng, size, uniform(rng, 2, 5), octaves=2, stretch=uniform(rng, 0.1, 1)),
        *((value_noise(rng, size, 2) - 0.5) * np.float32(side * 0.3) for _ in range(2)),
    )
    highlights = np.clip((streaks - uniform(rng, 0.6, 0.85)) * uniform(rng, 4, 15), 0, 1)
    clear = uniform(rng, 0.03, 0.35)
    alpha = shape * np.clip(clear + (uniform(rng, 0.4, 1) - clear) * edge + uniform(rng, 0.3, 0.9) * highlights, 0, 1)
    if rng.random() < 0.4:  # an opaque label or content
        alpha = np.maximum(alpha, shape * fill_coverage([outline(rng, centre, radius * 0.4, roughness=0.2)], size))
    colour = texture(rng, size, random_colour(rng)) * (1 - 0.6 * edge[:, :, None]) + highlights[:, :, None]
    return Layer(alpha.astype(np.float32), np.clip(colour, 0, 1).astype(np.float32))


def bubbles(rng: Rng, size: Size) -> Layer:
    """Bubbles and drops: discs whose opacity rises to the rim, iridescent, with a highlight."""
    side, count = min(size), int(rng.integers(2, 22))
    tints = map_colours(value_noise(rng, size, 5, octaves=2), palette(rng, 5, 0.5))
    alpha, colour = np.zeros(size, np.float32), tints.copy()
    for _ in range(count):
        radius = side * uniform(rng, 0.02, 0.2)
        cx, cy = size[1] * uniform(rng, 0.05, 0.95), size[0] * uniform(rng, 0.05, 0.95)
        reach = int(radius) + 3
        top, left = max(int(cy) - reach, 0), max(int(cx) - reach, 0)
        window = slice(top, int(cy) + reach), slice(left, int(cx) + reach)
        shape = alpha[window].shape
        y = np.arange(top, top + shape[0], dtype=np.float32)[:, None] - np.float32(cy)
        x = np.arange(left, left + shape[1], dtype=np.float32)[None] - np.float32(cx)
        distance = np.hypot(x, y)
        rim = np.clip(distance / radius, 0, 1) ** uniform(rng, 3, 14)
        from_light = np.hypot(x + radius * 0.4, y + radius * 0.45) / np.float32(radius * uniform(rng, 0.08, 0.25))
        shine = np.exp(-(from_light**2))
        own = _cover(radius - distance) * np.clip(uniform(rng, 0.02, 0.2) + uniform(rng, 0.4, 0.9) * rim + shine, 0, 1)
        alpha[window] = own + (1 - own) * alpha[window]
        colour[window] = np.clip(colour[window] + shine[:, :, None], 0, 1)
    return Layer(alpha, colour)


def moving(rng: Rng, layer: Layer | None, size: Size) -> Layer:
    """An object in motion or out of focus: alpha and the light it sends are blurred together.

    Args:
        layer: the object; None: a solid one.
    """
    layer = solid(rng, size) if layer is None else layer
    reach = max(3, round(min(size) * uniform(rng, 0.02, 0.14)))
    kernel = np.zeros((reach, reach), np.float32)
    if rng.random() < 0.7:
        angle = uniform(rng, 0, np.pi)
        half = np.array([np.cos(angle), np.sin(angle)]) * (reach - 1) / 2
        ends = np.rint(((reach - 1) / 2 + np.stack([-half, half])) * 16).astype(np.int32)
        cv2.line(kernel, tuple(ends[0].tolist()), tuple(ends[1].tolist()), 1.0, 1, cv2.LINE_8, 4)
    else:
        cv2.circle(kernel, (reach // 2, reach // 2), reach // 2, 1.0, -1)
    kernel /= kernel.sum()
    alpha = np.clip(cv2.filter2D(layer.alpha, -1, kernel, borderType=cv2.BORDER_REFLECT_101), 0, 1)
    sent = cv2.filter2D(layer.alpha[:, :, None] * layer.colour, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    seen = alpha[:, :, None] > 1 / 512
    colour = np.where(seen, sent / np.maximum(alpha[:, :, None], 1 / 512), layer.colour)
    return Layer(alpha, np.clip(colour, 0, 1))


def _sheet(rng: Rng, size: Size, period: float) -> tuple[Array, Array]:
    """Coordinates on a turned, bent sheet, in periods of its pattern."""
    angle = uniform(rng, 0, np.pi)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    reach = np.float32(min(size) * uniform(rng, 0, 0.25))
    x, y = (axis + (value_noise(rng, size, 2, octaves=2) - 0.5) * reach for axis in (x, y))
    u = np.float32(np.cos(angle) / period) * x + np.float32(np.sin(angle) / period) * y
    v = np.float32(np.cos(angle) / period) * y - np.float32(np.sin(angle) / period) * x
    return u, v


def _to_line(u: Array) -> Array:
    """Distance to the nearest whole number."""
    return np.abs(u - np.rint(u))


def _cover(depth: Array) -> Array:
    """Coverage of a pixel whose centre is ``depth`` pixels inside an edge: a ramp one pixel wide."""
    return np.clip(depth + 0.5, 0, 1)


def _greys(rng: Rng) -> Array:
    dark, bright = sorted(rng.uniform(0.1, 1, 2))
    return np.linspace(dark, bright, 3)[:, None] * (1 + rng.normal(0, 0.06, 3)).clip(0.7, 1.3).clip(0, 1 / bright)
