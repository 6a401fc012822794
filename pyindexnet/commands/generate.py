# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyindexnet import _console


def generate(
    output: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|SHEET.png",
            help="Folder that gets image/, trimap/, alpha/, foreground/ and background/; or one picture of all samples.",
            show_default=False,
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of items.")] = 24,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 320,
    side: Annotated[int, typer.Option(min=16, help="Height of a picture in the sheet, pixels.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Of all items.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    kind: Annotated[list[str] | None, typer.Option(help="Kind of object; repeatable. Default: all.")] = None,
    foregrounds: Annotated[Path | None, typer.Option(metavar="FOLDER", help="RGBA cut-outs to mix in.")] = None,
    backgrounds: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Photographs to mix in.")] = None,
) -> None:
    """Write items of the procedural matting generator: pictures with exact alpha, made from a seed."""
    with _console.input_errors():
        from pyindexnet.matting.images import READABLE, write_pictures
        from pyindexnet.matting.procedural import ProceduralMatting, as_picture, sample_sheet

        data = ProceduralMatting(
            (size, size),
            count,
            seed=seed,
            split=split,
            foregrounds=foregrounds,
            backgrounds=backgrounds,
            kinds=tuple(kind) if kind else None,
        )
        if output.suffix:
            items = _console.progress(data, "Generating")
            write_pictures({output: sample_sheet(list(items), columns=min(count, 4), side=side)})
        else:
            folders = {key: output / key for key in ("image", "trimap", "alpha", "foreground", "background")}
            for folder in (output, *folders.values()):
                if folder.is_dir() and any(path.suffix.lower() in READABLE for path in folder.iterdir()):
                    raise ValueError(f"{folder}: already holds pictures; choose another folder")
            for folder in folders.values():
                folder.mkdir(parents=True, exist_ok=True)
            for item in _console.progress(data, "Generating"):
                name = str(item["name"]).replace(" ", "_")
                pictures = {folder / f"{name}.png": as_picture(item[key]) for key, folder in folders.items()}
                write_pictures(
                    {path: p[:, :, 0] if path.parent.name in ("trimap", "alpha") else p for path, p in pictures.items()}
                )
    typer.echo(f"{output}: {count} items of {size} x {size}")
