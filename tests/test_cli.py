# SPDX-License-Identifier: Apache-2.0
"""The command ``pyindexnet``: what is not ``matte``."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import pyindexnet
from pyindexnet.cli import app


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"pyindexnet {pyindexnet.__version__}\n")


def test_help_lists_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("matte", "complexity"):
        assert f"{command} " in result.stdout


def test_complexity_table():
    result = CliRunner().invoke(app, ["complexity", "--model", "deep_matting"])
    assert result.exit_code == 0
    assert "130,545,345" in result.stdout
    assert "32.34" in result.stdout
    assert "multiply-adds of convolutions / 2^30" in result.stdout
    assert "B11" not in result.stdout


def test_complexity_markdown():
    result = CliRunner().invoke(app, ["complexity", "--model", "deep_matting", "--markdown"])
    assert result.exit_code == 0
    assert result.stdout.startswith("| model | parameters |")


def test_complexity_of_an_unknown_model(capfd):
    with pytest.raises(SystemExit, match="1"):
        app(["complexity", "--model", "nonesuch"])
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
