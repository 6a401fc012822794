# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(x: Annotated[Path, typer.Argument()]) -> None:
    """Placeholder."""
