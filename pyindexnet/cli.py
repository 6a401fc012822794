# SPDX-License-Identifier: Apache-2.0
"""The command ``pyindexnet``. Sub-commands import what they need when they run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyindexnet import _console
from pyindexnet.commands import evaluate, export, generate, train
from pyindexnet.commands.tiles import make_tiling, print_plans, tile_lines

if TYPE_CHECKING:
    from torch import nn

    from pyindexnet.matting.batch import Failure, Job
    from pyindexnet.matting.tiling import Tiling

#: Of ``matte`` without --weights, --model and --option.
DEFAULT_WEIGHTS = "procedural"
UNTRAINED = "no --weights: the network is untrained (random weights, seed 0), its alpha is noise, not a matte"

app = typer.Typer(
    name="pyindexnet",
    help="Image matting with fused kernels for learned down- and upsampling.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Align(str, Enum):
    """How an image comes to a size that the network takes."""

    resize = "resize"
    pad = "pad"


class Format(str, Enum):
    """File format in an output folder."""

    png = "png"
    tif = "tif"
    jpg = "jpg"


class BitDepth(str, Enum):
    """Bits per channel of what is written."""

    eight = "8"
    sixteen = "16"


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="pyindexnet")


def _print_version(wanted: bool) -> None:
    if wanted:
        from pyindexnet import __version__

        typer.echo(f"pyindexnet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


for _command in (train.train, evaluate.evaluate, generate.generate, export.export):
    app.command()(_command)


@app.command()
def matte(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE TRIMAP",
            help="Image and trimap; several such pairs; or folders of images and of trimaps, matched by file name.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="ALPHA",
            help="File of the alpha (.png, .tif, .jpg); an existing folder where there are several.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help=f"Network, by name. Default: what the weights were saved from, or {_console.DEFAULT_MODEL}."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the network; repeatable.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help=f"Checkpoint (.safetensors, .pt, .pth), or weights of the package, by name. Default: {DEFAULT_WEIGHTS}, of"
            f" {_console.DEFAULT_MODEL}; for another --model, or with --option, untrained weights.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="reference, cpu, cuda or triton. Default: the fastest that runs here.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is one.")] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE|COLOUR",
            help="Also write ALPHA_composite, the image over this picture or colour (white, #ff8800, 255,128,0).",
        ),
    ] = None,
    align: Annotated[
        Align | None,
        typer.Option(
            help="Bring an image to a size that the network takes: resize it, or pad by reflection. Default: as the network was"
            " published, IndexNet Matting with resize, TMFNet with pad.",
            show_default=False,
        ),
    ] = None,
    bit_depth: Annotated[
        BitDepth | None, typer.Option(help="Bits of what is written. Default: those of the image; JPEG: 8.")
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", help="Of what is written into a folder.")] = Format.png,
    fuse: Annotated[
        bool,
        typer.Option(help="Fold batch norms and activations into the convolutions first: faster, the same up to rounding."),
    ] = True,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the command may take, such as 6GiB (on a GPU: of the GPU). A larger image is matted in tiles.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Context on each side of a tile. Default: the network's receptive field, with which tiles change nothing but"
            " rounding.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the memory that each image would take and its tiles; write nothing.")
    ] = False,
) -> None:
    """Estimate the alpha matte of photographs from their trimaps.

    Black in a trimap is background, white is foreground, all between is unknown.

    Known pixels come out as exactly 0 and 1, but for the losses of JPEG. Existing outputs are replaced.
    """
    from pyindexnet import tune_allocator, use_backend

    if max_memory is None:  # it keeps freed memory, see OVERHEAD in matting/tiling.py
        tune_allocator()
    if weights is None and model is None and not option:
        weights = Path(DEFAULT_WEIGHTS)
    warned: list[str] = []
    with _console.input_errors():
        from pyindexnet.matting.batch import plan, run_job
        from pyindexnet.matting.compose import Background
        from pyindexnet.matting.inference import MEMORY_FORMAT, predict_alpha
        from pyindexnet.models import fuse as fused

        tiling = make_tiling(max_memory, overlap)
        depth = int(bit_depth.value) if bit_depth else None
        with _console.collect_warnings(warned):
            behind = Background(background) if background is not None else None
            jobs, unmatched = plan(
                inputs,
                output,
                suffix=f".{file_format.value}",
                background=behind,
                bit_depth=depth,
                keep=[weights],
            )
        where = _console.select_device(device)
        with use_backend(backend):
            network = _console.load_model(model, _console.parse_options(option or []), weights)
            network.to(where, memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
            if fuse:
                network = fused(network)
            _probe(network)
            if dry_run:
                failed = print_plans(jobs, network, tiling, warned)
                _report(len(jobs) + len(unmatched), unmatched + failed, "can be matted", warned)
                return
            predict = functools.partial(predict_alpha, network, align=align.value if align else None, tiling=tiling)
            run = functools.partial(run_job, predict=predict, background=behind, bit_depth=depth)
            failed = _run_all(jobs, run, warned, tiling)
    total = len(jobs) + len(unmatched)
    _report(total, unmatched + failed, f"matted into {output}", warned, untrained=weights is None)


@app.command()
def complexity(
    model: Annotated[
        str | None, typer.Option(help="Only the rows of this network. Default: all in the papers' tables.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Parameters and GFLOPs beside those that the papers print."""
    from rich.table import Table

    with _console.input_errors():
        from pyindexnet.models.complexity import DEFINITIONS, complexity_rows, complexity_table

        rows = complexity_rows(model)
    if markdown:
        typer.echo(complexity_table(rows))
        return
    table = Table(title="Parameters and GFLOPs")
    table.add_column("network")
    for header in ("parameters", "rounded", "printed", "input", "GFLOPs", "printed", "multiply-adds", "FLOPs"):
        table.add_column(header, justify="right")
    table.add_column("agrees")
    for row in rows:
        cost = row.complexity
        counted = ("-",) * 2 if cost is None else (f"{cost.gflops(d):.2f}" for d in ("multiply_adds", "flops"))
        table.add_row(
            row.name,
            "-" if cost is None else f"{cost.parameters:,}",
            row.parameters or "-",
            row.printed_parameters or "-",
            row.size,
            "-" if row.gflops is None else f"{row.gflops} ({row.definition})",
            row.printed_gflops or "-",
            *counted,
            {True: "yes", False: "[red]no", None: "-"}[row.agrees],
        )
    console = _console.table_console()
    console.print(table)
    console.print(
        "GFLOPs (paper) = {paper}; (mmcv) = {mmcv}; multiply-adds = {multiply_adds}; FLOPs = {flops}".format(**DEFINITIONS)
    )
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", markup=False)


@app.command()
def doctor() -> None:
    """Tell what runs on this machine, what does not, and why.

    Exit code 1 where PYINDEXNET_BACKEND asks for what cannot run.
    """
    from rich.table import Table

    with _console.input_errors():
        from pyindexnet.doctor import facts, statuses

        rows = statuses()
    console = _console.table_console()
    for name, value in facts():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    table = Table(title="Operators")
    for header in ("operator", "device", "runs on", "why not the others"):
        table.add_column(header)
    for row in rows:
        reasons = "\n".join(f"{backend}: {reason}" for backend, reason in row.reasons.items())
        table.add_row(row.op, row.device, row.chosen or "nothing", reasons)
    console.print(table)
    if any(row.chosen is None for row in rows):
        raise typer.Exit(1)


@app.command()
def check(
    op: Annotated[list[str] | None, typer.Option(help="Operator; repeatable. Default: all.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="reference, cpu, cuda or triton; repeatable. Default: all that run here.")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu or cuda; repeatable. Default: all that are here.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float64, float32, float16 or bfloat16; repeatable. Default: all.")
    ] = None,
) -> None:
    """Check the operators on this machine against the float64 reference and finite differences.

    The error shown is that of the case closest to its bound. Exit code 1 where a check fails.
    """
    from rich.table import Table

    with _console.input_errors():
        from pyindexnet.check import run_checks

        rows = list(_console.progress(run_checks(op, backend, device, dtype), "Checking"))
    table = Table(title="Checks against the float64 reference")
    for header in ("operator", "backend", "device", "dtype", "check"):
        table.add_column(header)
    for header in ("cases", "error", "bound"):
        table.add_column(header, justify="right")
    table.add_column("result")
    for row in rows:
        figures = ("-" if value is None else f"{value:.2e}" for value in (row.error, row.bound))
        table.add_row(
            row.op, row.backend, row.device, row.dtype, row.what, str(row.cases), *figures, "ok" if row.ok else "[red]FAILED"
        )
    _console.table_console().print(table)
    failed = [row for row in rows if not row.ok]
    for row in failed:
        typer.echo(f"error: {row.op}, {row.backend} on {row.device}, {row.dtype}, {row.what}: {row.failure}", err=True)
    typer.echo(f"{len(rows) - len(failed)} of {len(rows)} checks passed")
    if failed:
        raise typer.Exit(1)


def _probe(network: nn.Module) -> None:
    """Run the network once on a tiny input: a backend that cannot run is reported once, before any file is touched."""
    import numpy as np

    from pyindexnet.matting.inference import predict_alpha

    trimap = np.array([[0, 128, 255]], np.uint8)
    predict_alpha(network, np.zeros((1, 3, 3), np.uint8), trimap)


def _run_all(jobs: list[Job], run: Callable[[Job], tuple[int, int]], warned: list[str], tiling: Tiling | None) -> list[Failure]:
    """Run each job; one that fails on its input is returned and the others go on."""
    from rich.console import Console
    from rich.progress import track

    def matted(job: Job) -> None:
        start = time.perf_counter()
        height, width = run(job)
        if len(jobs) == 1:
            typer.echo(f"{job.alpha}: {width} x {height}, {time.perf_counter() - start:.2f} s")
        warned.extend(tile_lines(job.image, tiling))

    shown = track(jobs, "Matting", console=Console(stderr=True)) if len(jobs) > 1 else jobs
    return _console.each(shown, matted, warned)


def _report(total: int, failures: list[Failure], what: str, warned: list[str], *, untrained: bool = False) -> None:
    """Warnings, failures and a summary; exit code 1 where anything failed."""
    done = total - len(failures)
    if total > 1:
        typer.echo(f"{done} of {total} images {what}")
    _console.print_warnings(warned)
    if done and untrained:
        typer.echo("warning: " + UNTRAINED, err=True)
    for failure in failures:
        typer.echo(f"error: {failure.reason}", err=True)
    if failures:
        raise typer.Exit(1)
