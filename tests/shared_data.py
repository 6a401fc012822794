# SPDX-License-Identifier: Apache-2.0
"""Where the shared golden arrays and data live."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("PYINDEXNET_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def shared_path(*parts: str) -> Path:
    """Path inside the shared folder; skips the test where it is absent, fails it there under CI."""
    path = ROOT.joinpath(*parts)
    if not path.exists():
        reason = f"no {'/'.join(parts)} in the shared data (set PYINDEXNET_SHARED to its folder)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
