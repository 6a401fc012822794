# SPDX-License-Identifier: Apache-2.0
"""The commands ``pyindexnet check`` and ``pyindexnet doctor``."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from pyindexnet import _extension, backends, check
from pyindexnet.cli import app
from pyindexnet.ops._common import SUFFIX, family

QUICK = ["check", "--op", "indexed_pool", "--backend", "reference", "--device", "cpu"]


def test_check_passes_and_prints_a_row_per_tensor() -> None:
    result = CliRunner().invoke(app, [*QUICK, "--dtype", "float64"])
    assert result.exit_code == 0, result.output
    for what in ("y", "grad x", "grad logits", "gradcheck", "gradgradcheck"):
        assert what in result.stdout
    assert "5 of 5 checks passed" in result.stdout


def test_check_fails_on_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is off by a little more than rounding makes the command fail and name the worst case."""
    for definition in family("indexed_pool"):
        definition.define("_wrong")
    ops = torch.ops.pyindexnet
    torch.library.impl(
        "pyindexnet::indexed_pool_wrong", "default", lambda *arguments: ops.indexed_pool_reference(*arguments) * (1 + 1e-4)
    )
    torch.library.impl("pyindexnet::indexed_pool_backward_wrong", "default", ops.indexed_pool_backward_reference)
    monkeypatch.setitem(SUFFIX, "reference", "_wrong")
    result = CliRunner().invoke(app, [*QUICK, "--dtype", "float32"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "error: indexed_pool, reference on cpu, float32, y: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "pool"], "--op must be one of indexed_pool, .* got 'pool'"),
        (["--dtype", "int8"], "--dtype must be one of float64, .* got 'int8'"),
        (["--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
        (["--backend", "cpu", "--device", "cuda"], "nothing to check"),
    ],
)
def test_check_bad_names(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["check", *arguments])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_check_of_a_backend_that_cannot_run() -> None:
    result = CliRunner().invoke(app, ["check", "--op", "indexed_pool", "--backend", "cuda"])
    assert result.exit_code == 1
    assert "indexed_pool: backend cuda cannot run here: " in result.stderr


def test_every_dtype_of_the_operators_is_checked() -> None:
    assert list(check.DTYPES) == ["float64", "float32", "float16", "bfloat16"]


def test_doctor_names_every_operator_and_the_reasons() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for op in backends.operators():
        assert op in result.stdout
    if _extension.MODULE is not None:
        assert _extension.MODULE.cpu_isa in result.stdout
    if not torch.cuda.is_available():
        assert "PyTorch sees no CUDA device" in result.stdout


@pytest.mark.parametrize("command", [["doctor"], QUICK], ids=["doctor", "check"])
def test_unknown_backend(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("PYINDEXNET_BACKEND", "gpu")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.stderr == "error: PYINDEXNET_BACKEND must be one of reference, cpu, cuda, triton, got 'gpu'\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend runs here")
def test_doctor_with_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINDEXNET_BACKEND", "cuda")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout.count("nothing") == len(backends.operators())
    assert "PyTorch sees no CUDA device" in result.stdout
