# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet train``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
    SIGTERM ends it with exit code 143; --resume goes on from the last checkpoint.
    """
    from pyindexnet import tune_allocator

    tune_allocator()
    with _ended_by_sigterm(output), _console.input_errors():
        from pyindexnet.matting import training

        settings = training.load_config(config, override)
        result = training.train(settings, output, resume=resume, device=_console.select_device(device), quiet=quiet)
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    loss = "" if result.loss is None else f", loss {result.loss:.5f}"
    typer.echo(f"{result.weights}: {result.steps} steps{loss}")


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _ended_by_sigterm(folder: Path) -> Iterator[None]:
    """SIGTERM unwinds the stack, which ends the loader's workers and closes files; then one line. A second one kills.

    Not under torchrun: it ends all processes of a group, and one that waits for another would not unwind.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        from pyindexnet.matting.training.checkpoints import find_checkpoints

        found = find_checkpoints(folder)
        go_on = f"--resume goes on from {found[-1].name}" if found else "it had no checkpoint yet"
        _console.fail(f"{folder}: ended by SIGTERM; {go_on}", 128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
