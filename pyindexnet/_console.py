# SPDX-License-Identifier: Apache-2.0
"""What every sub-command needs: one-line errors and warnings, options, devices.

What is wrong with the user's input ends a command with one line on standard error and exit code 1 (2 for a malformed command
line). An exception that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from torch import nn

    from pyindexnet.matting.batch import Failure, Job

DEFAULT_MODEL = "indexnet_matting"


def fail(message: object, code: int = 1) -> NoReturn:
    """One line on standard error, then this exit code."""
    typer.echo(f"error: {one_line(message)}", err=True)
    raise typer.Exit(code)


def one_line(message: object) -> str:
    """The text of a message or exception without line breaks; the type's name where it has no text."""
    return " ".join(str(message).split()) or type(message).__name__


def input_error(error: BaseException) -> str | None:
    """One line where an exception comes from the user's input or machine, None where it is a bug."""
    import cv2

    from pyindexnet.backends import BackendError

    if isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, cv2.error)) and _out_of_memory(str(error))):
        return "out of memory"
    return one_line(error) if isinstance(error, (ValueError, TypeError, OSError, BackendError)) else None


def _out_of_memory(text: str) -> bool:
    # CUDA's, the CPU allocator's and OpenCV's
    return any(words in text for words in ("out of memory", "can't allocate memory", "Insufficient memory"))


def each(jobs: Iterable[Job], act: Callable[[Job], None], warned: list[str]) -> list[Failure]:
    """``act`` on every job; those that the user's input or machine makes fail, while the others go on. Adds to the warnings."""
    from pyindexnet.matting.batch import Failure

    failures: list[Failure] = []
    for job in jobs:
        try:
            with collect_warnings(warned):
                act(job)
        except Exception as error:
            reason = input_error(error)
            if reason is None:
                raise
            failures.append(Failure(job.image, reason))
    return failures


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what :func:`input_error` knows into :func:`fail`."""
    try:
        yield
    except Exception as error:
        message = input_error(error)
        if message is None:
            raise
        fail(message)


@contextmanager
def collect_warnings(into: list[str]) -> Iterator[None]:
    """Append the text of each warning raised inside, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            into += [text for text in dict.fromkeys(one_line(w.message) for w in caught) if text not in into]


def table_console() -> Console:
    """Standard output for tables: as wide as the terminal; wide enough for all columns in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def progress(rows: Iterable[Any], what: str) -> Iterator[Any]:
    """Pass rows through, with a counter on standard error while they come."""
    with Console(stderr=True).status(what) as status:
        for number, row in enumerate(rows, 1):
            status.update(f"{what}: {number}")
            yield row


def print_warnings(texts: Iterable[str]) -> None:
    """One line each on standard error."""
    for text in texts:
        typer.echo(f"warning: {text}", err=True)


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` strings as keyword arguments; values are Python literals, true/false/none, or plain strings.

    Raises:
        ValueError: no ``=``, a key that is no name, or one given twice.
    """
    words = {"true": True, "false": False, "none": None}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--option must be KEY=VALUE, got {pair!r}")
        if key in options:
            raise ValueError(f"--option {key} must be given once, got {text!r} after {options[key]!r}")
        try:
            options[key] = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def select_device(name: str | None) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; None: CUDA where PyTorch sees a device, else the CPU.

    Raises:
        ValueError: another name, or a device that is not there.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if (kind, colon) not in (("cpu", ""), ("cuda", ""), ("cuda", ":")) or (colon and not index.isdecimal()):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return name


def load_model(name: str | None, options: dict[str, Any], weights: Path | None) -> nn.Module:
    """A network in evaluation mode; without weights, its initialisation under seed 0.

    Args:
        weights: a file; or a name of :data:`pyindexnet.models.PRETRAINED`, unless a file is called so.
    """
    import torch

    from pyindexnet.models import (
        PRETRAINED,
        UnknownModelError,
        create_model,
        load_checkpoint,
        model_from_checkpoint,
        pretrained_model,
    )

    if str(weights) in PRETRAINED and not Path(str(weights)).exists():
        network = pretrained_model(str(weights))
        of = network.config["name"]  # type: ignore[index]
        if name not in (None, of):
            raise ValueError(f"weights {str(weights)!r} are of {of}, got --model {name}")
        if options:
            raise ValueError(f"weights {str(weights)!r} know their options, got --option {', '.join(options)}")
        return network
    if weights is not None and name is None and not options:
        try:
            return model_from_checkpoint(weights).eval()
        except UnknownModelError:
            pass  # loading it into the default network says what is wrong
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_model(name or DEFAULT_MODEL, **options)
    if weights is not None:
        load_checkpoint(network, weights)
    return network.eval()
