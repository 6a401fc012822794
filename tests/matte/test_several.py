# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet matte`` on several images, and as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyindexnet
from pyindexnet import _console
from pyindexnet.matting import read_picture, write_pictures
from pyindexnet.matting.images import to_integers
from tests.matte.run import TINY, UNTRAINED, fused_alpha, tiny_model, truncated
from tests.matting.pictures import photograph, trimap


@pytest.fixture
def folders(folder: Path) -> Path:
    """``images`` with five pictures and ``trimaps``, of which two cannot be used and one is missing."""
    for name in ("images", "trimaps"):
        (folder / name).mkdir()
    for index in range(5):
        write_pictures(
            {
                folder / "images" / f"{index}.png": photograph(40 + index),
                folder / "trimaps" / f"{index}.png": trimap(40 + index),
            }
        )
    Path("images/1.png").write_bytes(truncated(".png"))
    write_pictures({folder / "trimaps" / "2.png": np.zeros((42, 60), np.uint8)})
    Path("trimaps/3.png").unlink()
    return folder


def test_in_a_folder_the_others_continue(command, folders, weights):
    result = command("images", "trimaps", "-o", "out", "--weights", weights, *TINY)
    assert result.code == 1
    assert sorted(os.listdir("out")) == ["0.png", "4.png"]
    assert result.out == "2 of 5 images matted into out\n"
    assert "Matting" in result.err  # the progress bar
    assert [line.split(": ")[1:3] for line in result.err.splitlines()[-3:]] == [
        ["images/3.png", "has no trimap named 3.* in trimaps"],
        ["images/1.png", "cannot be decoded"],
        ["trimaps/2.png", "has no unknown pixels (background is 0 to 12, foreground 243 to 255); nothing to estimate"],
    ]
    assert len(result.errors) == 3
    for index in (0, 4):
        expected = fused_alpha(tiny_model(5), photograph(40 + index), trimap(40 + index))
        assert np.array_equal(read_picture(f"out/{index}.png").pixels, to_integers(expected, 8))


def test_a_folder_without_failures(command, folders, weights):
    for name in ("images/1.png", "images/2.png", "images/3.png", "trimaps/1.png", "trimaps/2.png"):
        Path(name).unlink()
    arguments = ("--weights", weights, "--format", "tif", "--background", "teal")
    result = command("images", "trimaps", "-o", "out", *arguments, *TINY)
    assert result.code == 0
    assert result.out == "2 of 2 images matted into out\n"
    assert not result.errors
    assert sorted(os.listdir("out")) == ["0.tif", "0_composite.tif", "4.tif", "4_composite.tif"]


def test_several_pairs(command, folder, weights):
    write_pictures({folder / "j.png": photograph(30, 40), folder / "u.png": trimap(30, 40)})
    result = command("i.png", "t.png", "gone.png", "t.png", "j.png", "u.png", "-o", "out", "--weights", weights, *TINY)
    assert result.code == 1
    assert sorted(os.listdir("out")) == ["i.png", "j.png"]
    assert result.errors == ["error: gone.png: no such file"]
    assert "2 of 3 images" in result.out


def test_an_unusable_network_ends_a_folder_run_once(command, folders):
    result = command("images", "trimaps", "-o", "out", "--weights", "none.pth", *TINY)
    assert "none.pth" in result.one_error()
    assert not os.listdir("out")


def test_as_a_process(folder):
    """The real entry point: exit codes, and nothing on standard error but the one line."""

    environment = {**os.environ, "PYTHONPATH": str(Path(pyindexnet.__file__).parents[1])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyindexnet", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    assert "Usage: pyindexnet matte" in run("matte", "--help").stdout
    done = run("matte", "i.png", "t.png", "-o", "out/a.png", *TINY)
    assert (done.returncode, os.listdir("out")) == (0, ["a.png"])
    assert UNTRAINED in done.stderr
    Path("i.png").write_bytes(truncated(".jpg"))
    failed = run("matte", "i.png", "t.png", "-o", "out/b.png", *TINY)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: i.png: cannot be decoded: image file is truncated")
    assert failed.stderr.count("\n") == 1
    assert os.listdir("out") == ["a.png"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", 0.5), ("true", True), ("False", False), ("none", None), ("m2o", "m2o"), ("(1, 2)", (1, 2)), ("", "")],
)
def test_option_values(text, value):
    assert _console.parse_options([f"key={text}"]) == {"key": value}


def test_option_given_twice():
    with pytest.raises(ValueError, match="--option a must be given once, got '2' after 1"):
        _console.parse_options(["a=1", "a=2"])
