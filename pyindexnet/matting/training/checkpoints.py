# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: complete or absent, whatever happens while one is written."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from pyindexnet._files import write_files

_NAME = re.compile(r"step_(\d{8})\.pt")
FORMAT = 1


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step and remove all but the newest ``keep``.

    Args:
        state: tensors, numbers, strings, lists and dicts of them.
    """
    path = folder / f"step_{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **state}, buffer)
    write_files({path: buffer.getvalue()}, durable=True)
    for old in find_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU; pickled code is refused.

    Raises:
        ValueError: another file, or a broken one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the decoder of a broken pickle raises KeyError, IndexError, struct.error, ...
        raise ValueError(f"{path}: cannot be read; remove it to go on from an older one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path}: must be a checkpoint of format {FORMAT}")
    return state
