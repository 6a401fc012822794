# SPDX-License-Identifier: Apache-2.0
"""The options of ``pyindexnet matte`` about memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pyindexnet import _console

if TYPE_CHECKING:
    from torch import nn

    from pyindexnet.matting.batch import Failure, Job
    from pyindexnet.matting.tiling import Tiling

#: A difference between tiles that shows in 8 bits.
VISIBLE = 1 / 255


def make_tiling(max_memory: str | None, overlap: int | None) -> Tiling | None:
    """The options as an object; None without ``--max-memory``.

    Raises:
        ValueError: a value that is not allowed.
    """
    from pyindexnet.matting.memory import parse_size
    from pyindexnet.matting.tiling import Tiling

    if max_memory is None:
        if overlap is not None:
            raise ValueError("--overlap needs --max-memory: without it there are no tiles")
        return None
    return Tiling(parse_size(max_memory), overlap=overlap)


def print_plans(jobs: Sequence[Job], network: nn.Module, tiling: Tiling | None, warned: list[str]) -> list[Failure]:
    """One line for each image: what it would take, and its tiles; returns those that would fail, and adds to the warnings."""
    from pyindexnet.matting.inference import memory_plan

    def show(job: Job) -> None:
        height, width = _read(job)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that do not really run
            plan = memory_plan(network, (height, width), tiling=tiling)
        typer.echo(f"{job.image}: {width} x {height}: {plan}")

    return _console.each(jobs, show, warned)


def _read(job: Job) -> tuple[int, int]:
    """Height and width of an image; both files are read as they would be for matting, with the same errors and warnings."""
    from pyindexnet.matting.images import read_picture
    from pyindexnet.matting.trimaps import fit_trimap, quantize_trimap

    image, drawn = read_picture(job.image), read_picture(job.trimap)
    image.rgb()
    quantize_trimap(fit_trimap(drawn, image, name=str(job.trimap)), lossy=drawn.lossy, name=str(job.trimap))
    return image.size


def tile_lines(image: Path, tiling: Tiling | None) -> list[str]:
    """Says what the tiles of the image just matted did; returns warnings."""
    if tiling is None or tiling.plan is None or len(tiling.plan.tiles) == 1:
        return []
    typer.echo(f"{image}: {len(tiling.plan.tiles)} tiles, largest difference at their seams {tiling.seam:.1e}")
    if tiling.seam < VISIBLE:
        return []
    return [f"{image}: tiles differ by {tiling.seam:.3f} at their seams, more than 1/255; use a larger --overlap"]
