# SPDX-License-Identifier: Apache-2.0
"""The options of ``pyindexnet matte`` about memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import nn

    from pyindexnet.matting.batch import Job
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


def print_plans(jobs: Sequence[Job], network: nn.Module, tiling: Tiling | None) -> None:
    """One line for each image: what it would take, and its tiles.

    Raises:
        ValueError, OSError: an image cannot be read, or does not fit.
    """
    from pyindexnet.matting.images import read_picture
    from pyindexnet.matting.inference import memory_plan

    for job in jobs:
        size = read_picture(job.image).size
        plan = memory_plan(network, size, tiling=tiling)
        typer.echo(f"{job.image}: {size[1]} x {size[0]}: {plan}")


def tile_lines(image: Path, tiling: Tiling | None) -> list[str]:
    """Says what the tiles of the image just matted did; returns warnings."""
    if tiling is None or tiling.plan is None or len(tiling.plan.tiles) == 1:
        return []
    typer.echo(f"{image}: {len(tiling.plan.tiles)} tiles, largest difference at their seams {tiling.seam:.1e}")
    if tiling.seam < VISIBLE:
        return []
    return [f"{image}: tiles differ by {tiling.seam:.3f} at their seams, more than 1/255; use a larger --overlap"]
