# SPDX-License-Identifier: Apache-2.0
"""Data sets: reproducible whatever the workers, broken files named, evaluation pictures, the order of an epoch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyindexnet.matting.data import (
    RECIPES,
    CompositionDataset,
    EpochSampler,
    EvaluationDataset,
    Foreground,
    Photograph,
    composition_1k_parts,
    cutouts,
    foreground_folders,
    photographs,
)
from pyindexnet.matting.data.files import Cache, read_cutout
from tests.matting.data.pictures import blob, write, write_backgrounds, write_foregrounds, write_trimap
from tests.matting.data.test_layouts import composition_parts

ROOT = Path(__file__).resolve().parents[3]
RECIPE = replace(RECIPES["rmat"], size=32, crop_sides=(32, 48), resize_to=40, radius=(1, 5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_foregrounds(tmp_path / "fg", tmp_path / "alpha", [f"n{i}" for i in range(5)])
    write_backgrounds(tmp_path / "bg")
    return tmp_path


def dataset(folder: Path, **options: Any) -> CompositionDataset:
    foregrounds = foreground_folders(folder / "fg", folder / "alpha")
    return CompositionDataset(foregrounds, sorted((folder / "bg").iterdir()), RECIPE, **options)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_reproducible_whatever_the_workers(folder: Path) -> None:
    expected: dict[tuple[int, int], Any] = {}
    plain = dataset(folder, seed=3, length=7)
    for epoch in range(2):
        for index in range(7):
            expected[epoch, index] = plain[epoch, index]
    cached = dataset(folder, seed=3, length=7, cache_megabytes=1)
    for workers in (0, 2):
        sampler = EpochSampler(7, seed=1)
        loader = DataLoader(
            cached,
            batch_size=3,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=60 * (workers > 0),  # type: ignore[arg-type]
        )
        for epoch in range(2):
            sampler.set_epoch(epoch)
            keys = list(sampler)
            batches = list(loader)
            assert sum(len(b["name"]) for b in batches) == 7
            for number, key in enumerate(keys):
                batch, row = batches[number // 3], number % 3
                item = {k: v[row] for k, v in batch.items()}
                item["relabel"] = bool(item["relabel"])
                assert equal(item, expected[key]), key


def test_workers_keep_to_one_thread(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.matting.data.thread_count", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.split() == ["1"] * 5 + ["2"], done.stderr


def test_epochs_seeds_and_indices_differ(folder: Path) -> None:
    plain = dataset(folder, seed=3, length=12)
    assert equal(plain[0], plain[0, 0])
    assert plain[0]["name"] == plain[5]["name"] == "n0"
    for other in (plain[1, 0], plain[5], dataset(folder, seed=4, length=12)[0]):
        assert not torch.equal(plain[0]["image"], other["image"])


def test_second_foregrounds(folder: Path) -> None:
    # Items with a second foreground come from the recipe's probability: with 1 all, with 0 none.
    plain = dataset(folder)
    plain.recipe = replace(RECIPE, combine=0)
    alone = [plain[i]["alpha"] for i in range(5)]
    plain.recipe = replace(RECIPE, combine=1)
    combined = [plain[i]["alpha"] for i in range(5)]
    assert not any(torch.equal(a, b) for a, b in zip(alone, combined, strict=True))


def break_files(folder: Path) -> None:
    (folder / "fg" / "n1.png").write_bytes((folder / "fg" / "n1.png").read_bytes()[:200])
    (folder / "alpha" / "n3.png").unlink()
    (folder / "bg" / "0.png").write_text("no picture")


def test_broken_files_stop_the_run(folder: Path) -> None:
    plain = dataset(folder)
    plain.recipe = replace(RECIPE, combine=0)  # each item reads the one foreground
    break_files(folder)
    with pytest.raises(ValueError, match="n1.png: cannot be decoded"):
        plain[1]
    with pytest.raises(FileNotFoundError, match="n3.png: no such file"):
        plain[3]
    with pytest.raises(ValueError, match="0.png: not a picture"):
        [plain[epoch, 0] for epoch in range(20)]


def test_broken_files_are_named_once_and_skipped(folder: Path) -> None:
    plain = dataset(folder, on_error="skip")
    break_files(folder)
    with pytest.warns(UserWarning, match="skipped") as caught:
        items = [plain[epoch, index] for epoch in range(8) for index in range(5)]
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 3
    assert all(m.startswith("skipped: ") for m in messages)
    for part in ("n1.png", "n3.png", "bg/0.png"):
        assert sum(part in m for m in messages) == 1
    assert {item["name"] for item in items} == {"n0", "n2", "n4"}
    # What stands in for a broken file is drawn from the item's own numbers.
    fresh = CompositionDataset(plain.foregrounds, plain.backgrounds, RECIPE, on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        again = fresh[0, 1]
    assert equal(again, items[1])


def test_nothing_readable(folder: Path) -> None:
    plain = dataset(folder, on_error="skip")
    for path in (folder / "bg").iterdir():
        path.write_text("no picture")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="50 files in turn .* not a picture"):
        plain[0]


def test_sizes_must_agree(folder: Path) -> None:
    write(folder / "alpha" / "n0.png", blob(59, 76)[1])
    with pytest.raises(ValueError, match="alpha/n0.png: must have the size of .*fg/n0.png, 76 x 60, got 76 x 59"):
        dataset(folder)[0]


def test_cutouts(tmp_path: Path) -> None:
    colours, alpha = blob()
    path = write(tmp_path / "cut" / "a.png", np.dstack([colours, alpha]))
    found = read_cutout(path)
    assert (found[0] == colours).all()
    assert (found[1] == alpha).all()
    plain = CompositionDataset(cutouts(tmp_path / "cut"), write_backgrounds(tmp_path / "bg"), RECIPE)
    assert plain[0]["name"] == "a"
    opaque = write(tmp_path / "opaque.png", colours)
    with pytest.raises(ValueError, match="opaque.png: must have an alpha channel, got mode RGB"):
        read_cutout(opaque)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="a.png: cannot be decoded"):
        read_cutout(path)
    path.write_text("no picture")
    with pytest.raises(ValueError, match="a.png: not a picture"):
        read_cutout(path)
    with pytest.raises(FileNotFoundError, match="b.png: no such file"):
        read_cutout(tmp_path / "b.png")


def test_deep_and_odd_files(tmp_path: Path) -> None:
    # 16-bit grey mattes, palettes and colour mattes of one grey are what released sets hold as well.
    colours, alpha = blob()
    Image.fromarray(colours).quantize(256).save(tmp_path / "c.png")
    Image.fromarray(alpha.astype(np.uint16) * 257).save(tmp_path / "a.png")
    foreground = Foreground("x", tmp_path / "c.png", tmp_path / "a.png")
    backgrounds = write_backgrounds(tmp_path / "bg")
    deep = CompositionDataset([foreground], backgrounds, RECIPE)[0]
    Image.fromarray(np.dstack([alpha] * 3)).save(tmp_path / "a.png")
    assert equal(CompositionDataset([foreground], backgrounds, RECIPE)[0], deep)


def test_evaluation_of_photographs(tmp_path: Path) -> None:
    colours, alpha = blob()
    for name in ("a", "b"):
        write(tmp_path / "i" / f"{name}.png", colours)
        write_trimap(tmp_path / "t" / f"{name}.png", alpha)
        write(tmp_path / "m" / f"{name}.png", alpha)
    sources = photographs(tmp_path / "i", tmp_path / "t", tmp_path / "m")
    (tmp_path / "m" / "b.png").write_text("no picture")
    item = EvaluationDataset(sources)[0]
    assert (np.rint(255 * item["image"].numpy()) == colours.transpose(2, 0, 1)).all()
    assert (np.rint(255 * item["alpha"][0].numpy()) == alpha).all()
    assert item["trimap"].unique().tolist() == [0, 0.5, 1]
    assert item["name"] == "a"
    with pytest.raises(ValueError, match="m/b.png: not a picture"):
        EvaluationDataset(sources)[1]
    with pytest.warns(UserWarning, match="skipped: .*m/b.png: not a picture"):
        left_out = EvaluationDataset(sources, on_error="skip")[1]
    assert left_out["name"] == "b"
    assert "m/b.png: not a picture" in left_out["error"]
    write(tmp_path / "m" / "b.png", alpha[1:])
    with pytest.raises(ValueError, match="m/b.png: must have the size of"):
        EvaluationDataset([Photograph(*vars(s).values()) for s in sources])[1]


def test_evaluation_of_composites(tmp_path: Path) -> None:
    composition_parts(tmp_path)
    items = EvaluationDataset(composition_1k_parts(tmp_path, tmp_path / "voc", per_foreground=2))
    assert len(items) == 4
    item = items[2]
    colours, _ = blob(seed=1)
    background = np.asarray(Image.open(tmp_path / "voc" / "2.png"))  # 50 x 90, enlarged by 60 / 50
    assert item["background"].shape == (3, 60, 76)
    corner = np.rint(255 * item["background"][:, 0, 0].numpy())
    assert np.abs(corner - background[0, 0]).max() <= 30  # cubic enlargement overshoots a little
    assert (np.rint(255 * item["foreground"].numpy()) == colours.transpose(2, 0, 1)).all()
    composite = item["alpha"] * item["foreground"] + (1 - item["alpha"]) * item["background"]
    assert (composite - item["image"]).abs().max() <= 0.5 / 255 + 1e-6  # stored in 8 bits


def test_order_of_an_epoch() -> None:
    plain = EpochSampler(10, seed=2, shuffle=False)
    assert list(plain) == [(0, i) for i in range(10)]
    shuffled = EpochSampler(10, seed=2)
    first = list(shuffled)
    assert sorted(first) == list(plain)
    assert first != list(plain)
    assert list(shuffled) == first
    shuffled.set_epoch(1)
    assert sorted(shuffled) == [(1, i) for i in range(10)]
    assert [i for _, i in shuffled] != [i for _, i in first]
    # Resumed in the middle, and by several processes, it is the same order.
    shuffled.set_epoch(0, start=4)
    assert list(shuffled) == first[4:]
    assert len(shuffled) == 6
    parts = [list(EpochSampler(10, seed=2, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(p) for p in parts] == [3] * 4
    assert [key for turn in zip(*parts, strict=True) for key in turn] == first + first[:2]


def test_cache_drops_the_oldest() -> None:
    cache = Cache(2.5)
    arrays = {k: (np.zeros(2**20, np.uint8),) for k in "abc"}
    for key in "ab":
        cache.put(key, arrays[key])
    assert cache.get("a") is arrays["a"]
    cache.put("c", arrays["c"])
    assert cache.get("b") is None
    assert cache.get("a") is arrays["a"]
    assert cache.get("c") is arrays["c"]
    cache.put("large", (np.zeros(3 * 2**20, np.uint8),))
    assert cache.get("large") is None
    assert cache.get("c") is arrays["c"]


def test_errors(folder: Path) -> None:
    plain = dataset(folder)
    with pytest.raises(IndexError, match=r"^CompositionDataset: index must be in \[0, 5\), got 5"):
        plain[5]
    with pytest.raises(ValueError, match="^CompositionDataset: foregrounds and backgrounds must hold .* got 5 and 0"):
        CompositionDataset(plain.foregrounds, [])
    for options, message in (
        ({"seed": -1}, "^CompositionDataset: seed must be 0 or more, got -1"),
        ({"length": 0}, "^CompositionDataset: length must be 1 or more, got 0"),
        ({"recipe": "gca"}, "^CompositionDataset: recipe must be one of 'indexnet', .* got 'gca'"),
        ({"on_error": "ignore"}, "^data: on_error must be one of 'stop', 'skip', got 'ignore'"),
        ({"cache_megabytes": -1}, "^data: cache_megabytes must be 0 or more, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            CompositionDataset(plain.foregrounds, plain.backgrounds, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^EpochSampler: .* got 10, 2 of 2"):
        EpochSampler(10, rank=2, world_size=2)
    with pytest.raises(ValueError, match=r"^EpochSampler: epoch must be 0 or more and start in \[0, 5\], got 0, 6"):
        EpochSampler(10, world_size=2, start=6)
