# SPDX-License-Identifier: Apache-2.0
"""Networks beside classical matting, on the same pictures: closed-form and KNN matting as PyMatting has them.

Sources: A. Levin et al.: A Closed-Form Solution to Natural Image Matting, PAMI 2008; Q. Chen et al.: KNN Matting, PAMI 2013.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.evaluation import METRICS, Predict, Row, evaluate_items, mean_metrics
from pyindexnet.matting.trimaps import BACKGROUND, FOREGROUND, UNKNOWN
from pyindexnet.nn.arguments import require_one_of

#: Methods by the name that PyMatting gives them: ``estimate_alpha_NAME``.
CLASSICAL = {"cf": "closed-form", "knn": "KNN"}


@dataclass(frozen=True)
class Comparison:
    """What several methods make of the same pictures.

    Attributes:
        rows: of each method, in the same order of pictures. left_out: names of pictures that a classical method cannot take:
            their trimap knows no foreground, no background, or everything.
    """

    rows: Mapping[str, Sequence[Row]]
    left_out: Sequence[str]


def classical(name: str) -> Predict:
    """A method of PyMatting with its default parameters, for :func:`pyindexnet.matting.evaluation.evaluate_items`.

    Args:
        name: one of :data:`CLASSICAL`.
    Returns:
        (image (H, W, 3) in [0, 1], trimap (H, W) uint8 of 0, 128, 255) -> alpha (H, W) float32 in [0, 1], 0 and 1 where known.
    Raises:
        ValueError: the name; from the function: the method's solver fails, or the trimap knows no foreground or no background.
        ModuleNotFoundError: PyMatting is not installed.
    """
    require_one_of("classical", "name", name, tuple(CLASSICAL))
    try:
        import pymatting
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "closed-form and KNN matting need PyMatting; install the extra: pip install 'pyindexnet[compare]'", name=error.name
        ) from error
    estimate: Callable[..., Any] = getattr(pymatting, f"estimate_alpha_{name}")

    def predict(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        levels = np.where(trimap == UNKNOWN, 0.5, trimap / 255.0)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on its speed
            alpha = np.clip(estimate(image.astype(np.float64), levels), 0, 1).astype(np.float32)
        alpha[trimap == BACKGROUND] = 0
        alpha[trimap == FOREGROUND] = 1
        return alpha

    return predict


def compare(methods: Mapping[str, Predict], items: Iterable[Item]) -> Iterator[tuple[str, dict[str, Row] | None]]:
    """Measure several methods on each item, one item after the other.

    Args:
        methods: by the name that tables show. items: as for :func:`pyindexnet.matting.evaluation.evaluate_items`.
    Yields:
        Name of the picture and the row of each method; None for one that classical methods cannot take.
    """
    for item in items:
        if "error" in item:  # skipped, with a warning
            continue
        trimap = np.asarray(item["trimap"])
        if not all((trimap == level).any() for level in (0, 0.5, 1)):
            yield str(item["name"]), None
            continue
        yield str(item["name"]), {name: next(evaluate_items(predict, [item])) for name, predict in methods.items()}


def gather(measured: Iterable[tuple[str, dict[str, Row] | None]], methods: Iterable[str]) -> Comparison:
    """Rows by method of what :func:`compare` yields."""
    rows: dict[str, list[Row]] = {name: [] for name in methods}
    left_out: list[str] = []
    for picture, found in measured:
        if found is None:
            left_out.append(picture)
            continue
        for name, row in found.items():
            rows[name].append(row)
    return Comparison(rows, left_out)


def comparison_means(comparison: Comparison) -> list[tuple[str, dict[str, float]]]:
    """Of each method: its name; means of the metrics and of ``seconds``; ``ratio``: its SAD over that of the first."""
    table: list[tuple[str, dict[str, float]]] = []
    for name, rows in comparison.rows.items():
        means = {**mean_metrics(rows), "seconds": float(np.mean([row.seconds for row in rows]))}
        first = table[0][1]["sad"] if table else means["sad"]
        table.append((name, {**means, "ratio": means["sad"] / first if first else float("nan")}))
    return table


def comparison_csv(comparison: Comparison) -> str:
    """One line for each picture and method, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "name", *METRICS, "seconds"])
    for method, rows in comparison.rows.items():
        for row in rows:
            writer.writerow([method, row.name, *(f"{row.metrics[name]:.6g}" for name in METRICS), f"{row.seconds:.3f}"])
    return text.getvalue()


def comparison_markdown(comparison: Comparison) -> str:
    """The means as a Markdown table."""
    lines = ["| method | SAD | MSE | Grad | Conn | SAD over the first's | seconds |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, means in comparison_means(comparison):
        figures = [*(f"{means[metric]:.4f}" for metric in METRICS), f"{means['ratio']:.2f}", f"{means['seconds']:.2f}"]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"
