# SPDX-License-Identifier: Apache-2.0
"""Evaluation of mattes: metrics by picture, test-time augmentation, tables, the worst cases side by side."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pyindexnet.matting.data import EvaluationDataset, Photograph, aim_500, composition_1k, photographs
from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.data.files import OnError
from pyindexnet.matting.metrics import evaluate_pair
from pyindexnet.matting.procedural import as_picture, tile
from pyindexnet.matting.trimaps import BACKGROUND, FOREGROUND, UNKNOWN
from pyindexnet.nn.arguments import require_one_of

#: Folder layouts by name: what :func:`open_folder` reads.
LAYOUTS: dict[str, Callable[..., list[Photograph]]] = {
    "plain": lambda root, on_error: photographs(root / "image", root / "trimap", root / "alpha", on_error=on_error),
    "aim_500": aim_500,
    "composition_1k": composition_1k,
}
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

METRICS = ("sad", "mse", "grad", "conn")
#: Of :func:`augmented`.
SCALES = (0.75, 1.0, 1.25)
ORIENTATIONS = 8


@dataclass(frozen=True)
class Row:
    """One evaluated picture.

    Attributes:
        name: of the picture. metrics: by name, see :func:`pyindexnet.matting.metrics.evaluate_pair`.
        seconds: that the prediction took.
        pictures: small ones of image, trimap, alpha, prediction and absolute error, (side, side, 3) uint8 each: a thousand
            rows of a large data set stay in memory.
    """

    name: str
    metrics: dict[str, float]
    seconds: float
    pictures: tuple[np.ndarray, ...]


def open_folder(folder: Path, layout: str = "plain", *, on_error: OnError = "stop") -> Iterator[Item]:
    """The pictures of a folder.

    Args:
        layout: "plain" (sub-folders image, trimap and alpha, matched by file name), or another of :data:`LAYOUTS`.
        on_error: "stop" or "skip" at a missing or broken file; :func:`evaluate_items` leaves skipped ones out.
    Raises:
        ValueError: the layout, or nothing was found. OSError: a folder or (stop) a file is missing.
    """
    require_one_of("open_folder", "layout", layout, tuple(LAYOUTS))
    data = EvaluationDataset(LAYOUTS[layout](folder, on_error=on_error), on_error=on_error)
    return (data[index] for index in range(len(data)))


def evaluate_items(predict: Predict, items: Iterable[Item], *, side: int = 240) -> Iterator[Row]:
    """Predict each item's alpha and measure it.

    Args:
        predict: (image (H, W, 3) float32 RGB in [0, 1], trimap (H, W) uint8 of 0, 128, 255) -> alpha (H, W) in [0, 1].
        items: with ``image``, ``trimap``, ``alpha`` and ``name``, as the data sets and the generator make them.
        side: of the pictures in a row.
    """
    for item in items:
        if "error" in item:  # skipped, with a warning
            continue
        image = np.ascontiguousarray(np.asarray(item["image"]).transpose(1, 2, 0))
        trimap = trimap_levels(np.asarray(item["trimap"])[0])
        alpha = np.asarray(item["alpha"])[0]
        begun = time.perf_counter()
        prediction = predict(image, trimap)
        seconds = time.perf_counter() - begun
        maps = (*(item[key] for key in ("image", "trimap", "alpha")), prediction[None], np.abs(prediction - alpha)[None])
        pictures = tuple(_fit(as_picture(values), side) for values in maps)
        metrics = evaluate_pair(prediction, alpha, trimap)
        yield Row(str(item["name"]), {name: float(metrics[name]) for name in METRICS}, seconds, pictures)


def trimap_levels(trimap: np.ndarray) -> np.ndarray:
    """A trimap of {0, 0.5, 1} as uint8 of 0, 128, 255."""
    return np.where(trimap == 0.5, UNKNOWN, trimap * FOREGROUND).astype(np.uint8)


def trimap_baseline(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """The trimap taken for the alpha, unknown pixels at one half: what a network must beat."""
    return np.where(trimap == UNKNOWN, np.float32(0.5), trimap.astype(np.float32) / 255)


def augmented(predict: Predict) -> Predict:
    """Mean prediction over 3 scales and the 8 orientations of a square: test-time augmentation, at 25 times the cost.

    Scaled down, a pixel is unknown where any of it was. A scale that leaves no pixel unknown, or none known, is left out.

    Args:
        predict: as for :func:`evaluate_items`.
    Returns:
        A function of the same kind.
    """

    def mean(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        height, width = trimap.shape
        total, count = np.zeros((height, width), np.float64), 0
        for scale in SCALES:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            scaled = np.clip(cv2.resize(image, size, interpolation=interpolation), 0, 1) if scale != 1 else image
            levels = _scaled_trimap(trimap, size) if scale != 1 else trimap
            if levels is None:
                continue
            for orientation in range(ORIENTATIONS):
                turned = predict(orient(scaled, orientation), orient(levels, orientation))
                alpha = orient_back(turned, orientation)
                count += 1
                total += alpha if scale == 1 else cv2.resize(alpha, (width, height), interpolation=cv2.INTER_CUBIC)
        alpha = np.clip(total / count, 0, 1).astype(np.float32)
        alpha[trimap == BACKGROUND] = 0
        alpha[trimap == FOREGROUND] = 1
        return alpha

    return mean


def _scaled_trimap(trimap: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Resized to (width, height), thin unknown bands kept; None where all is known or all unknown, which networks refuse."""
    levels = cv2.resize(trimap, size, interpolation=cv2.INTER_NEAREST)
    if size < (trimap.shape[1], trimap.shape[0]):
        levels[cv2.resize((trimap == UNKNOWN).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0] = UNKNOWN
    unknown = levels == UNKNOWN
    return None if unknown.all() or not unknown.any() else levels


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Mirror (4 to 7) and turn by a multiple of 90 degrees; (H, W) or (H, W, C)."""
    mirrored = pixels[:, ::-1] if orientation >= 4 else pixels
    return np.ascontiguousarray(np.rot90(mirrored, orientation % 4))


def orient_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Inverse of :func:`orient`."""
    turned = np.rot90(pixels, -(orientation % 4))
    return np.ascontiguousarray(turned[:, ::-1] if orientation >= 4 else turned)


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Means over pictures. Raises ValueError where there are none."""
    if not rows:
        raise ValueError("mean_metrics: rows must not be empty")
    return {name: float(np.mean([row.metrics[name] for row in rows])) for name in METRICS}


def metrics_csv(rows: Sequence[Row]) -> str:
    """One line for each picture, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *METRICS, "seconds"])
    for row in rows:
        writer.writerow([row.name, *(f"{row.metrics[name]:.6g}" for name in METRICS), f"{row.seconds:.3f}"])
    return text.getvalue()


def worst_cases(rows: Sequence[Row], metric: str = "sad", count: int = 8) -> tuple[np.ndarray, list[Row]]:
    """Gallery of the pictures with the largest error: image, trimap, alpha, prediction, error.

    Args:
        metric: one of :data:`METRICS` to sort by. count: of pictures.
    Returns:
        (H, W, 3) uint8, and the rows shown, worst first.
    """
    worst = sorted(rows, key=lambda row: -row.metrics[metric])[:count]
    return tile([row.pictures for row in worst]), worst


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale a picture into a square and centre it on grey."""
    scale = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cell = np.full((side, side, 3), 128, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    return cell
