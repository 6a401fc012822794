# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress bar, ``log.jsonl``, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyindexnet._files import write_files
from pyindexnet.matting.training.config import TrainingConfig

LOG_NAME = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's log; one that a killed process left unfinished is dropped."""
    path = folder / LOG_NAME
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


class Monitor:
    """Records scalars and shows progress; a context manager.

    Args:
        config: of the run. folder: of the run. start: first step; lines of later steps are removed from the log.
        quiet: no progress bar.
    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, config: TrainingConfig, folder: Path, start: int, *, quiet: bool) -> None:
        kept = [row for row in read_log(folder) if row["step"] <= start]
        write_files({folder / LOG_NAME: "".join(json.dumps(row) + "\n" for row in kept).encode()}, durable=True)
        self._file = open(folder / LOG_NAME, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._writer = _tensorboard(folder / "tensorboard", start) if config.log.tensorboard else None
        self._progress = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._task = self._progress.add_task("", total=config.schedule.steps, completed=start, note="")

    def __enter__(self) -> Monitor:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def advance(self, loss: float) -> None:
        """One step is done."""
        self._progress.update(self._task, advance=1, note=f"loss {loss:.4f}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers after so many steps."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def mattes(self, step: int, pictures: torch.Tensor) -> None:
        """Show pictures (3, H, W) in [0, 1] in TensorBoard, where it is on."""
        if self._writer is not None:
            self._writer.add_image("mattes", pictures, step)


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("log.tensorboard: needs TensorBoard, pip install 'pyindexnet[train]'") from error
    return SummaryWriter(str(folder), purge_step=start + 1)
