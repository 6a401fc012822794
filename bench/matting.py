# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.matting``: metrics of one pair, and items of the data loader against OpenCV's own resize and warp.

Both on one core, all sides of a table in turns; a time is the median of its turns. ``metrics`` evaluates a soft disk of noise
like fur, of which all but the core is unknown. ``loader`` makes items of two foregrounds and two backgrounds that are held
decoded; its floor is what no loader can do without: one warp of the colours, one of alpha, and one resize of the background, to
the size of the item. ``decode`` reads the files of one item, which comes on top without a cache.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pyindexnet import tune_allocator
from pyindexnet.matting.data import RECIPES, CompositionDataset, draw_trimap, foreground_folders, list_pictures
from pyindexnet.matting.data.files import read_colours, read_matte
from pyindexnet.matting.images import write_pictures
from pyindexnet.matting.metrics import connectivity_error, evaluate_pair, gradient_error, mse, sad

from .report import number, table
from .run import CpuClock, Effort, Side, Timing, time_sides

# Larger than what all pictures of the benchmark take.
_CACHE_MEGABYTES = 256


def make_pair(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, alpha (float64 in [0, 1]) and trimap (uint8) of ``size`` x ``size`` pixels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(y, x) / size
    fur = cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), 2)
    alpha = np.clip((0.4 - radius) / 0.15 + 2 * fur, 0, 1)
    alpha[radius > 0.48], alpha[radius < 0.2] = 0, 1
    prediction = np.clip(alpha + 0.05 * rng.standard_normal((size, size)), 0, 1)
    return prediction, alpha, draw_trimap(np.rint(255 * alpha).astype(np.uint8), 10, 10)


def metric_sides(size: int) -> list[Side]:
    """One side for each metric and one for all."""
    pair = make_pair(size)
    metrics = {"sad": sad, "mse": mse, "grad": gradient_error, "conn": connectivity_error, "evaluate_pair": evaluate_pair}

    def calling(metric: Callable[..., Any]) -> Callable[[Any], Any]:
        return lambda _: metric(*pair)

    return [Side(name, calling(metric)) for name, metric in metrics.items()]


def write_sources(folder: Path, size: tuple[int, int]) -> None:
    """Two foregrounds, with alpha, and two backgrounds of ``size`` = (height, width), as PNG and JPEG files."""
    rng = np.random.default_rng(1)
    for part in ("fg", "alpha", "bg"):
        (folder / part).mkdir()
    alpha = np.rint(255 * make_pair(max(size))[1]).astype(np.uint8)[: size[0], : size[1]]
    for name in ("0", "1"):
        soft = cv2.resize(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8), size[::-1])
        grain = rng.integers(0, 8, (*size, 3), np.uint8)
        write_pictures(
            {
                folder / "fg" / f"{name}.png": soft // 2 + grain,
                folder / "alpha" / f"{name}.png": alpha,
                folder / "bg" / f"{name}.jpg": 255 - soft // 2 - grain,
            }
        )


def loader_sides(folder: Path, recipe: str) -> list[Side]:
    """The floor, decoding, and items with and without a cache."""
    foregrounds = foreground_folders(folder / "fg", folder / "alpha")
    backgrounds = list_pictures(folder / "bg")
    chosen = RECIPES[recipe]
    colours, background = read_colours(foregrounds[0].colours), read_colours(backgrounds[0])
    assert foregrounds[0].alpha is not None
    alpha = read_matte(foregrounds[0].alpha)
    turn = cv2.getRotationMatrix2D((colours.shape[1] / 2, colours.shape[0] / 2), 20, 1)
    size = (chosen.size, chosen.size)

    def floor(_: Any) -> None:
        cv2.warpAffine(colours, turn, size)
        cv2.warpAffine(alpha, turn, size)
        cv2.resize(background, size)

    def decode(_: Any) -> None:
        read_colours(foregrounds[0].colours)
        read_matte(foregrounds[0].alpha)  # type: ignore[arg-type]
        read_colours(backgrounds[0])

    def items(**options: Any) -> Callable[[Any], Any]:
        data = CompositionDataset(foregrounds, backgrounds, replace(chosen, combine=0), **options)
        keys = ((epoch, 0) for epoch in itertools.count())
        return lambda _: data[next(keys)]

    return [
        Side("floor", floor),
        Side("decode", decode),
        Side("items, decoded", items(cache_megabytes=_CACHE_MEGABYTES)),
        Side("items, from files", items()),
    ]


def metric_table(size: int, timings: dict[str, Timing]) -> str:
    rows = [(name, f"{size}x{size}", *(number(f"{t.milliseconds(q)}") for q in (0.5, 0.2, 0.8))) for name, t in timings.items()]
    return table(("metric", "size", "ms", "p20", "p80"), rows, left=2)


def loader_table(recipe: str, timings: dict[str, Timing]) -> str:
    rows = []
    for name, timing in timings.items():
        median = timing.milliseconds(0.5)
        times_floor = 1 / timing.times_faster_than(timings["floor"])
        rows.append((recipe, name, *(number(f"{value}") for value in (median, 1e3 / median, times_floor))))
    return table(("recipe", "side", "ms", "images/s", "×floor"), rows, left=2)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.matting", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("metrics", "loader"))
    parser.add_argument("--size", type=int, default=1500, help="side of the pair of mattes (default: %(default)s)")
    parser.add_argument(
        "--source", type=int, nargs=2, default=(1080, 1440), metavar=("H", "W"), help="of the loader's pictures"
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), nargs="+", default=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a table (default: %(default)s)")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    tune_allocator()
    effort, clock = Effort(rounds=arguments.rounds, seconds=0, max_seconds=60), CpuClock()
    if arguments.what == "metrics":
        print(metric_table(arguments.size, time_sides(metric_sides(arguments.size), clock, effort)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        write_sources(Path(name), tuple(arguments.source))
        for recipe in arguments.recipe:
            print(loader_table(recipe, time_sides(loader_sides(Path(name), recipe), clock, effort)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
