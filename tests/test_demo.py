# SPDX-License-Identifier: Apache-2.0
"""The demo: a real photograph through IndexNet Matting with the reference and with the fused operators."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyindexnet
from pyindexnet import backends
from pyindexnet.matting import quantize_trimap, read_picture

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_demo(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(Path(pyindexnet.__file__).parents[1]), **environment}
    variables.pop("PYINDEXNET_BACKEND", None)
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables)


def test_demo(tmp_path):
    reason = backends.why_not("indexed_pool", "cpu")
    if reason is not None:
        pytest.skip(reason)
    done = run_demo("--runs", "1", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "weights 'procedural' of indexnet_matting: Apache-2.0" in done.stderr
    operators = re.findall(r"^ *(indexed_\w+) +1x\d+x\d+x\d+ .*x +\d\.\de[+-]\d\d", done.stdout, re.MULTILINE)
    assert operators == ["indexed_pool_skip"] * 5 + ["indexed_upsample"] * 5
    for line in ("reference operators: ", "fused operators: ", "difference of the two alphas: "):
        assert re.search(rf"{line} *\d", done.stdout), line
    alpha = read_picture(tmp_path / "demo" / "alpha.png").pixels
    trimap = read_picture(EXAMPLES / "astronaut_trimap.png").pixels
    assert (alpha[trimap == 0] == 0).all()
    assert (alpha[trimap == 255] == 255).all()
    assert len(np.unique(alpha[trimap == 128])) > 10
    assert read_picture(tmp_path / "demo" / "composite.png").pixels.shape == (512, 512, 3)
    height, width, _ = read_picture(tmp_path / "demo" / "comparison.png").pixels.shape
    assert width > 4 * height


def test_demo_without_fused_kernels_says_so(tmp_path):
    done = run_demo("--output", tmp_path / "demo", PYINDEXNET_NO_EXTENSION="1")
    assert done.returncode == 1
    assert done.stderr.startswith("no fused kernels here:\n  cpu: PYINDEXNET_NO_EXTENSION=1 is set\n")
    assert not (tmp_path / "demo").exists()


def test_the_trimap_is_the_one_that_the_script_draws():
    spec = importlib.util.spec_from_file_location("draw_astronaut_trimap", EXAMPLES / "draw_astronaut_trimap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = read_picture(EXAMPLES / "astronaut_trimap.png").pixels
    assert stored.shape == (512, 512)
    assert np.array_equal(stored, module.draw())
    assert np.array_equal(stored, quantize_trimap(stored))
