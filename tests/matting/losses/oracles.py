# SPDX-License-Identifier: Apache-2.0
"""Losses written down a second time, one pixel after the other, for small arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import ndimage


def masked(mask: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(sample, row, column) of the pixels that count."""
    for n, _, i, j in np.argwhere(mask):
        yield int(n), int(i), int(j)


def mean_of_samples(values: list[tuple[int, float]], samples: int) -> float:
    """Mean over ``samples`` of the means of each sample's values, 0 for a sample that has none."""
    means = []
    for n in range(samples):
        own = [v for sample, v in values if sample == n]
        means.append(sum(own) / len(own) if own else 0.0)
    return sum(means) / samples


def charbonnier(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, epsilon: float) -> float:
    values = []
    for n, i, j in masked(mask):
        channels = range(target.shape[1])
        values.append((n, sum(math.sqrt((prediction[n, c, i, j] - target[n, c, i, j]) ** 2 + epsilon**2) for c in channels)))
    return mean_of_samples(values, len(mask))


def laplacian(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, levels: int) -> float:
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256

    def bands(x: np.ndarray) -> list[np.ndarray]:
        found = []
        for _ in range(levels):
            lower = ndimage.correlate(x, kernel, mode="mirror")[::2, ::2]
            spread = np.zeros_like(x)
            spread[::2, ::2] = lower
            found.append(x - 4 * ndimage.correlate(spread, kernel, mode="mirror"))
            x = lower
        return found

    total = 0.0
    pairs = [(bands(p), bands(t)) for p, t in zip(prediction[:, 0], target[:, 0], strict=True)]
    for level in range(levels):
        step = 2**level
        chosen = [np.abs(p[level] - t[level])[m[::step, ::step]] for (p, t), m in zip(pairs, mask[:, 0], strict=True)]
        values = np.concatenate(chosen)
        total += step * (values.mean() if values.size else 0.0)
    return float(total)


def steepness(x: np.ndarray, n: int, i: int, j: int, operator: str) -> float:
    plane = x[n, 0]
    if operator == "difference":
        right = plane[i, min(j + 1, plane.shape[1] - 1)] - plane[i, j]
        below = plane[min(i + 1, plane.shape[0] - 1), j] - plane[i, j]
        return float(abs(right) + abs(below))
    padded = np.pad(plane, 1, mode="edge")[i : i + 3, j : j + 3]
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return float(abs((padded * sobel).sum()) + abs((padded * sobel.T).sum()))


def gradient(x: np.ndarray, mask: np.ndarray, operator: str) -> float:
    values = [steepness(x, n, i, j, operator) for n, i, j in masked(mask)]
    return sum(values) / len(values) if values else 0.0


def affinity(alpha: np.ndarray, image: np.ndarray) -> float:
    """Of maps that have the size of the grid already."""

    def matrix(sample: np.ndarray) -> np.ndarray:
        pixels = sample.reshape(sample.shape[0], -1).T
        distances = np.array([[((a - b) ** 2).sum() for b in pixels] for a in pixels])
        return np.exp(-distances / distances.max())

    return float(np.mean([np.sqrt(((matrix(a) - matrix(c)) ** 2).mean()) for a, c in zip(alpha, image, strict=True)]))
