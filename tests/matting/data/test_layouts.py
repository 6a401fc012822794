# SPDX-License-Identifier: Apache-2.0
"""Folder layouts: what belongs together is found, what lacks a partner stops the listing or is named and skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyindexnet.matting.data import (
    adobe,
    aim_500,
    composition_1k,
    composition_1k_parts,
    cutouts,
    distinctions_646,
    foreground_folders,
    list_pictures,
    photographs,
)
from tests.matting.data.pictures import blob, write, write_backgrounds, write_foregrounds, write_trimap

PIXEL = np.zeros((1, 1, 3), np.uint8)


def test_adobe(tmp_path: Path) -> None:
    for part, names in (("Adobe-licensed images", ["b", "a"]), ("Other", ["c.d"])):
        write_foregrounds(tmp_path / "Training_set" / part / "fg", tmp_path / "Training_set" / part / "alpha", names, ".jpg")
    found = adobe(tmp_path)
    assert [f.name for f in found] == ["a", "b", "c.d"]
    assert found[2].colours == tmp_path / "Training_set/Other/fg/c.d.jpg"
    assert found[2].alpha == tmp_path / "Training_set/Other/alpha/c.d.png"
    with pytest.raises(FileNotFoundError, match="Test_set: has neither 'Adobe-licensed images' nor 'Other'"):
        adobe(tmp_path, "test")
    with pytest.raises(ValueError, match="^adobe: split must be one of 'train', 'test', got 'val'"):
        adobe(tmp_path, "val")


def test_distinctions_646(tmp_path: Path) -> None:
    write_foregrounds(tmp_path / "Test" / "FG", tmp_path / "Test" / "GT", ["x"])
    assert [f.name for f in distinctions_646(tmp_path, "test")] == ["x"]
    with pytest.raises(FileNotFoundError, match="FG: no such folder"):
        distinctions_646(tmp_path)


def test_cutouts(tmp_path: Path) -> None:
    write(tmp_path / "b.png", PIXEL)
    write(tmp_path / "hair" / "a.webp", PIXEL)
    write(tmp_path / "hair" / ".hidden.png", PIXEL)
    (tmp_path / "notes.txt").touch()
    assert [(f.name, f.alpha) for f in cutouts(tmp_path)] == [("b", None), ("hair/a", None)]


def test_aim_500(tmp_path: Path) -> None:
    for folder, suffix in (("original", ".jpg"), ("trimap", ".png"), ("mask", ".png"), ("usr", ".png")):
        write(tmp_path / folder / f"o_1{suffix}", PIXEL)
    (found,) = aim_500(tmp_path)
    assert (found.name, found.image.parent.name, found.trimap.parent.name, found.alpha.parent.name) == (
        "o_1",
        "original",
        "trimap",
        "mask",
    )


@pytest.mark.parametrize("copies", [True, False])
def test_composition_1k(copies: bool, tmp_path: Path) -> None:
    for name in ("dog_0", "dog_1"):
        write(tmp_path / "merged" / f"{name}.png", PIXEL)
        write(tmp_path / "trimaps" / f"{name}.png", PIXEL)
        if copies:
            write(tmp_path / "alpha_copy" / f"{name}.png", PIXEL)
    write(tmp_path / "alpha" / "dog.png", PIXEL)
    found = composition_1k(tmp_path)
    assert [p.name for p in found] == ["dog_0", "dog_1"]
    expected = ["alpha_copy/dog_0.png", "alpha_copy/dog_1.png"] if copies else ["alpha/dog.png"] * 2
    assert [p.alpha for p in found] == [tmp_path / e for e in expected]


def composition_parts(root: Path) -> None:
    part = root / "Adobe-licensed images"
    write_foregrounds(part / "fg", part / "alpha", ["dog", "cat"])
    for name in ("dog_0", "dog_1", "cat_0", "cat_1"):
        write_trimap(part / "trimaps" / f"{name}.png", blob()[1])
    write_backgrounds(root / "voc", 4)
    (root / "test_fg_names.txt").write_text("dog.png\ncat.png\n")
    (root / "test_bg_names.txt").write_text("3.png\n1.png\r\n2.png\n0.png\n\n")


def test_composition_1k_parts(tmp_path: Path) -> None:
    composition_parts(tmp_path)
    found = composition_1k_parts(tmp_path, tmp_path / "voc", per_foreground=2)
    assert [(c.name, c.background.name, c.trimap.name) for c in found] == [
        ("dog_0", "3.png", "dog_0.png"),
        ("dog_1", "1.png", "dog_1.png"),
        ("cat_0", "2.png", "cat_0.png"),
        ("cat_1", "0.png", "cat_1.png"),
    ]
    (tmp_path / "voc" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="voc/1.png: no such file"):
        composition_1k_parts(tmp_path, tmp_path / "voc", per_foreground=2)
    with pytest.warns(UserWarning, match="^skipped: .*voc/1.png: no such file"):
        found = composition_1k_parts(tmp_path, tmp_path / "voc", per_foreground=2, on_error="skip")
    assert [c.name for c in found] == ["dog_0", "cat_0", "cat_1"]
    with pytest.raises(ValueError, match="must name 20 backgrounds for each of 2 foregrounds, got 4"):
        composition_1k_parts(tmp_path, tmp_path / "voc")
    with pytest.raises(FileNotFoundError, match="voc/test_fg_names.txt: no such file"):
        composition_1k_parts(tmp_path / "voc", tmp_path)


def test_missing_partners(tmp_path: Path) -> None:
    write_foregrounds(tmp_path / "fg", tmp_path / "alpha", ["a", "b", "c"])
    (tmp_path / "alpha" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"fg/b.png: has no alpha b.\* in .*alpha"):
        foreground_folders(tmp_path / "fg", tmp_path / "alpha")
    with pytest.warns(UserWarning, match=r"^skipped: .*fg/b.png: has no alpha"):
        found = foreground_folders(tmp_path / "fg", tmp_path / "alpha", on_error="skip")
    assert [f.name for f in found] == ["a", "c"]
    with pytest.raises(ValueError, match="^data: on_error must be one of 'stop', 'skip', got 'ignore'"):
        foreground_folders(tmp_path / "fg", tmp_path / "alpha", on_error="ignore")  # type: ignore[arg-type]


def test_two_pictures_of_one_stem(tmp_path: Path) -> None:
    for path in ("i/a.png", "t/a.png", "t/a.jpg", "m/a.png"):
        write(tmp_path / path, PIXEL)
    with pytest.raises(ValueError, match=r"t/a.png: a.jpg has the same stem"):
        photographs(tmp_path / "i", tmp_path / "t", tmp_path / "m")


def test_nothing_left(tmp_path: Path) -> None:
    write(tmp_path / "fg" / "a.png", PIXEL)
    write(tmp_path / "alpha" / "b.png", PIXEL)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="fg: no complete example is left"):
        foreground_folders(tmp_path / "fg", tmp_path / "alpha", on_error="skip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: has no pictures"):
        list_pictures(tmp_path / "empty")
