# SPDX-License-Identifier: Apache-2.0
"""Importing the kernels must not touch the GPU: it would cost every process a CUDA context, and break forking."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

pytest.importorskip("triton")

import pyindexnet.kernels
from pyindexnet.ops import _common

pytestmark = pytest.mark.skipif(_common.TRITON_INTERPRETED, reason="the same in a process without the interpreter")

MODULES = sorted(m.name for m in pkgutil.iter_modules(pyindexnet.kernels.__path__))

# Every way to the GPU that PyTorch and Triton have raises; the machine need not have one.
_TRAPS = """
import importlib, sys
import torch
from triton import runtime

def touched(*args, **kwargs):
    raise RuntimeError("the GPU was touched")

torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.current_device = touched
type(runtime.driver).active = property(touched)

if sys.argv[1] == "touch":
    {touch}
else:
    for module in sys.argv[1:]:
        importlib.import_module(f"pyindexnet.kernels.{{module}}")
"""


def _run(*arguments: str, touch: str = "pass") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _TRAPS.format(touch=touch), *arguments], capture_output=True, text=True)


def test_import_does_not_touch_the_gpu() -> None:
    assert len(MODULES) > 1
    result = _run(*MODULES)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("touch", ["torch.zeros(1, device='cuda')", "runtime.driver.active.get_current_device()"])
def test_traps_catch(touch: str) -> None:
    result = _run("touch", touch=touch)
    assert result.returncode != 0
    assert "RuntimeError: the GPU was touched" in result.stderr
