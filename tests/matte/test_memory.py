# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet matte`` within a given memory: tiles, dry runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from pyindexnet.matting import read_picture, write_pictures
from tests.matting.pictures import photograph, trimap


@pytest.fixture
def wide(folder: Path, monkeypatch) -> Path:
    """A picture several tiles wide for ``deep_matting``, whose receptive field is small; the process seems to hold nothing."""
    monkeypatch.setattr("pyindexnet.matting.tiling.used_bytes", lambda device: 0)
    write_pictures({folder / "w.png": np.tile(photograph(), (1, 20, 1)), folder / "wt.png": np.tile(trimap(), (1, 20))})
    return folder


DEEP = ("--model", "deep_matting", "--option", "width=0.015625", "--align", "pad")


def test_tiles_change_nothing_that_shows(command, wide):
    assert command("w.png", "wt.png", "-o", "out/whole.png", *DEEP, "--bit-depth", "16").code == 0
    result = command("w.png", "wt.png", "-o", "out/tiles.png", *DEEP, "--bit-depth", "16", "--max-memory", "2800K")
    assert result.code == 0
    found = re.search(r"w\.png: (\d+) tiles, largest difference at their seams (\S+)", result.out)
    assert int(found[1]) > 1
    assert float(found[2]) < 1 / 255
    whole, tiles = (read_picture(f"out/{name}.png").pixels.astype(int) for name in ("whole", "tiles"))
    assert np.abs(whole - tiles).max() <= 65535 / 255


def test_dry_run_writes_nothing(command, wide):
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--max-memory", "4500K", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"w\.png: 1200 x 45: whole .* tiles of .* overlap \d+ x \d+, .* times the pixels\n", result.out)
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--dry-run")
    assert result.out.endswith("in one piece\n")
    assert os.listdir("out") == []


def test_dry_run_reports_what_would_fail(command, wide):
    """What has no trimap, a broken image and a trimap of another size: each by itself, the others go on."""
    for name in ("images", "trimaps"):
        Path(name).mkdir()
    for stem in ("a", "alone", "small"):
        write_pictures({Path(f"images/{stem}.png"): photograph()})
    Path("images/broken.png").write_bytes(b"no picture")
    write_pictures({Path("trimaps/a.png"): trimap(), Path("trimaps/broken.png"): trimap()})
    write_pictures({Path("trimaps/small.png"): trimap()[:20]})
    result = command("images", "trimaps", "-o", "out", *DEEP, "--dry-run")
    assert result.code == 1
    assert re.fullmatch(r"images/a\.png: 60 x 45: whole .* in one piece\n1 of 4 images can be matted\n", result.out)
    assert len(result.errors) == 3
    for name in ("images/alone.png: has no trimap", "images/broken.png", "trimaps/small.png"):
        assert name in result.err
    assert os.listdir("out") == []


def test_memory_errors(command, wide):
    def error(*arguments: str) -> str:
        return command("w.png", "wt.png", "-o", "out/a.png", *DEEP, *arguments).one_error()

    assert "size must be a number with K, M, G or T, such as 6GiB, got '6 apples'" in error("--max-memory", "6 apples")
    assert "--overlap needs --max-memory" in error("--overlap", "32")
    assert "overlap must be at least 0 pixels, got -1" in error("--max-memory", "6G", "--overlap", "-1")
    assert os.listdir("out") == []


def test_an_image_that_does_not_fit_says_what_would(command, wide):
    result = command("w.png", "wt.png", "-o", "out/a.png", *DEEP, "--max-memory", "100K")
    assert result.code == 1
    assert len(result.errors) == 1
    assert "max_memory must be at least" in result.errors[0]
    assert os.listdir("out") == []
