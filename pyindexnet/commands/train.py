# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pyindexnet import _console


def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped configuration.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Of the run; made where it is absent.", show_default=False)
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as data.length=500; repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a matting network.

    Writes checkpoints, log.jsonl and weights.safetensors. Under torchrun, one process for each GPU.
    """
    from pyindexnet import tune_allocator

    tune_allocator()
    with _console.input_errors():
        from pyindexnet.matting import training

        settings = training.load_config(config, override)
        result = training.train(settings, output, resume=resume, device=_console.select_device(device), quiet=quiet)
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    loss = "" if result.loss is None else f", loss {result.loss:.5f}"
    typer.echo(f"{result.weights}: {result.steps} steps{loss}")
