# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of ``pyindexnet matte``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyindexnet.cli import app
from pyindexnet.matting import predict_alpha, write_pictures
from pyindexnet.models import save_checkpoint
from tests.matte.run import Result, tiny_model
from tests.matting.pictures import photograph, trimap


@pytest.fixture
def command(capfd, monkeypatch):
    """Run ``pyindexnet matte`` in this process, on the CPU; what libraries write to the file descriptors counts too."""
    monkeypatch.delenv("PYINDEXNET_BACKEND", raising=False)

    def run(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            app(["matte", "--device", "cpu", *map(str, arguments)], prog_name="pyindexnet")
        captured = capfd.readouterr()
        return Result(exit_info.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """The current folder, with an image ``i.png``, its trimap ``t.png`` and an empty folder ``out``."""
    monkeypatch.chdir(tmp_path)
    write_pictures({tmp_path / "i.png": photograph(), tmp_path / "t.png": trimap()})
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of the tiny network, one whose alpha is not 0 or 1 everywhere."""
    alpha = predict_alpha(tiny_model(5), photograph(), trimap())
    assert ((alpha > 0) & (alpha < 1)).any()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(tiny_model(5), path)
    return path
