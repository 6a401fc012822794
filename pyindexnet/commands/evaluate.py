# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet evaluate``."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from pyindexnet import _console

if TYPE_CHECKING:
    from pyindexnet.matting.comparison import Comparison
    from pyindexnet.matting.data.compose import Item
    from pyindexnet.matting.data.files import OnError
    from pyindexnet.matting.evaluation import Predict, Row

GENERATOR = "procedural"


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar=f"FOLDER|{GENERATOR}",
            help="Folder of pictures with trimaps and mattes; or the test split of the generator.",
            show_default=False,
        ),
    ],
    layout: Annotated[
        str, typer.Option(help="Of the folder: plain (image/, trimap/, alpha/, same file names), aim_500 or composition_1k.")
    ] = "plain",
    on_error: Annotated[str, typer.Option(help="At a missing or broken file: stop, or skip it with a warning.")] = "stop",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME", help="Checkpoint, or weights of the package. Without it: the trimap taken for the alpha."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Network, by name. Default: what the weights were saved from.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the network; repeatable.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Gets metrics.csv and worst.png; with --compare comparison.csv.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Also measure cf (closed-form matting) or knn (KNN matting), of PyMatting, on the same pictures; repeatable.",
        ),
    ] = None,
    foregrounds: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="RGBA cut-outs that the generator takes for its objects.")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Photographs that the generator takes for its backgrounds.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --compare: print a Markdown table.")] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over 3 scales and 8 orientations; 25 times the work.")] = False,
    sort: Annotated[str, typer.Option(help="Metric that says what is worst: sad, mse, grad or conn.")] = "sad",
    count: Annotated[int, typer.Option(min=1, help="Items of the generator.")] = 48,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the generator's items.")] = 320,
    seed: Annotated[int, typer.Option(min=0, help="Of the generator.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is one.")] = None,
) -> None:
    """Measure mattes: SAD, MSE, gradient and connectivity error of each picture and their means."""
    from pyindexnet import tune_allocator

    tune_allocator()
    warned: list[str] = []
    with _console.input_errors(), _warnings_at_error(warned), _console.collect_warnings(warned):
        from pyindexnet.matting import comparison, evaluation
        from pyindexnet.matting.procedural import ProceduralMatting

        if sort not in evaluation.METRICS:
            raise ValueError(f"--sort must be one of {', '.join(evaluation.METRICS)}, got {sort!r}")
        if weights is None and (model or option):
            raise ValueError("--model and --option need --weights")
        if markdown and not compare:
            raise ValueError("--markdown needs --compare")
        items: Iterable[Item]
        if source == GENERATOR:
            items = ProceduralMatting(
                (size, size), count, seed=seed, split="test", foregrounds=foregrounds, backgrounds=backgrounds, share=1
            )
        elif foregrounds or backgrounds:
            raise ValueError(f"--foregrounds and --backgrounds are for {GENERATOR}, got the folder {source}")
        else:
            items = evaluation.open_folder(Path(source), layout, on_error=cast("OnError", on_error))
        methods: dict[str, Predict] = {"untouched trimaps" if weights is None else str(weights): evaluation.trimap_baseline}
        if weights is not None:
            from pyindexnet.matting.inference import MEMORY_FORMAT, predict_alpha

            network = _console.load_model(model, _console.parse_options(option or []), weights)
            network.to(_console.select_device(device), memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
            methods[str(weights)] = functools.partial(predict_alpha, network)
        if tta:
            methods = {name: evaluation.augmented(predict) for name, predict in methods.items()}
        try:
            methods |= {comparison.CLASSICAL.get(name, name): comparison.classical(name) for name in compare or []}
        except ModuleNotFoundError as error:
            _console.fail(error)
        if output is not None:
            _check_writable(output)
        if compare:
            _compare(methods, items, source, output, markdown)
        else:
            _measure(next(iter(methods.items())), items, source, output, sort)
    _console.print_warnings(warned)


def _measure(method: tuple[str, Predict], items: Iterable[Item], source: str, output: Path | None, sort: str) -> None:
    """Measure one method and print its worst pictures and the means."""
    from rich.table import Table

    from pyindexnet._files import write_files
    from pyindexnet.matting import evaluation
    from pyindexnet.matting.images import write_pictures

    name, predict = method
    rows: list[Row] = list(_console.progress(evaluation.evaluate_items(predict, items), "Evaluating"))
    if not rows:
        raise ValueError(f"{source}: no picture could be read")
    means = evaluation.mean_metrics(rows)
    gallery, worst = evaluation.worst_cases(rows, sort)
    if output is not None:
        write_files({output / "metrics.csv": evaluation.metrics_csv(rows).encode()})
        write_pictures({output / "worst.png": gallery})
    table = Table(title=f"{len(rows)} pictures, {name}")
    table.add_column("picture")
    for metric in evaluation.METRICS:
        table.add_column(metric, justify="right")
    for row in (*worst, None):
        values = means if row is None else row.metrics
        table.add_row("mean of all" if row is None else row.name, *(f"{values[key]:.5f}" for key in evaluation.METRICS))
    _console.table_console().print(table)


def _compare(methods: dict[str, Predict], items: Iterable[Item], source: str, output: Path | None, markdown: bool) -> None:
    """Measure several methods on the same pictures and print their means."""
    from rich.table import Table

    from pyindexnet._files import write_files
    from pyindexnet.matting import comparison
    from pyindexnet.matting.evaluation import METRICS

    measured = _console.progress(comparison.compare(methods, items), "Comparing")
    compared: Comparison = comparison.gather(measured, methods)
    count = len(next(iter(compared.rows.values())))
    if not count:
        raise ValueError(f"{source}: no picture that all methods can take")
    if output is not None:
        write_files({output / "comparison.csv": comparison.comparison_csv(compared).encode()})
    if compared.left_out:
        left_out = ", ".join(compared.left_out)
        _console.print_warnings([f"left out, the trimap knows no foreground, no background or everything: {left_out}"])
    if markdown:
        typer.echo(comparison.comparison_markdown(compared), nl=False)
        return
    table = Table(title=f"{count} pictures")
    table.add_column("method")
    for header in (*METRICS, "SAD over the first's", "seconds"):
        table.add_column(header, justify="right")
    for name, means in comparison.comparison_means(compared):
        table.add_row(name, *(f"{means[key]:.4f}" for key in METRICS), f"{means['ratio']:.2f}", f"{means['seconds']:.2f}")
    _console.table_console().print(table)


@contextmanager
def _warnings_at_error(texts: list[str]) -> Iterator[None]:
    """Print the warnings that were collected inside when an exception ends it: they may say why."""
    try:
        yield
    except Exception:
        _console.print_warnings(texts)
        raise


def _check_writable(output: Path) -> None:
    """Make the folder and see that files can be written to it, before the hours that an evaluation may take."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OSError(f"{output}: cannot be written: {error.strerror}") from error
    for name in ("metrics.csv", "worst.png", "comparison.csv"):
        if (output / name).is_dir():
            raise ValueError(f"{output / name}: must be a file, is a folder")
