# SPDX-License-Identifier: Apache-2.0
"""Loads ``pyindexnet._C`` if it was built, and says why not where it was not."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

BUILD_COMMAND = "pip install --no-build-isolation . (in the source folder; needs gcc >= 11 and ninja)"


def _is_command() -> bool:
    """Whether this process is the command ``pyindexnet``, which imports the package before its own code can catch anything."""
    script = Path("".join(sys.argv[:1])).name
    return script == "pyindexnet" or sys.orig_argv[1:3] == ["-m", "pyindexnet"]


def _load() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, reason). Importing the module registers its kernels with PyTorch.

    Raises:
        ValueError: PYINDEXNET_CPU_ISA is no instruction set, or none of this processor; as the command: one line, exit code 2.
    """
    if os.environ.get("PYINDEXNET_NO_EXTENSION") == "1":
        return None, "PYINDEXNET_NO_EXTENSION=1 is set"
    if importlib.util.find_spec("pyindexnet._C") is None:
        return None, f"pyindexnet._C was not built; build it with: {BUILD_COMMAND}"
    try:
        from pyindexnet import _C  # type: ignore[attr-defined]
    except ImportError as error:
        if "PYINDEXNET_CPU_ISA" in str(error):  # a wrong setting, not a wrong binary
            if _is_command():
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            raise ValueError(str(error)) from None
        warnings.warn(f"pyindexnet._C exists but does not load, its kernels are off: {error}", stacklevel=2)
        return None, f"pyindexnet._C does not load: {error}"
    return _C, ""


# Constants of the process: torch.compile must be able to trace a read of them.
MODULE, REASON = _load()
