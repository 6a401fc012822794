# SPDX-License-Identifier: Apache-2.0
"""The procedural generator: exact composition, reproducible items, every kind of object, the user's own pictures."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.procedural import OBJECTS, ProceduralMatting, sample_sheet

SIZE = (48, 64)
EPS = float(torch.finfo(torch.float32).eps)


def tensors(item: Item) -> dict[str, Tensor]:
    return {key: value for key, value in item.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("kind", list(OBJECTS))
def test_items_are_what_they_say(kind: str) -> None:
    data = ProceduralMatting(SIZE, 4, seed=1, kinds=(kind,))
    for index in range(len(data)):
        item = tensors(data[index])
        image, trimap, alpha = item["image"], item["trimap"], item["alpha"]
        assert [tuple(t.shape) for t in (image, trimap, alpha)] == [(3, *SIZE), (1, *SIZE), (1, *SIZE)]
        for value in item.values():
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all()
            assert value.min() >= 0
            assert value.max() <= 1
        assert set(trimap.unique().tolist()) <= {0.0, 0.5, 1.0}
        assert torch.equal(alpha[trimap == 0], torch.zeros_like(alpha[trimap == 0]))
        assert torch.equal(alpha[trimap == 1], torch.ones_like(alpha[trimap == 1]))
        assert (trimap == 0.5).any()
        assert torch.equal((alpha * 255).round() / 255, alpha)
        gold = alpha.double() * item["foreground"].double() + (1 - alpha.double()) * item["background"].double()
        assert (image.double() - gold).abs().max() <= 4 * EPS  # three roundings of values below one


@pytest.mark.parametrize("kind", ["hair", "fur", "lace", "smoke", "glass", "bubbles", "motion"])
def test_soft_kinds_are_soft(kind: str) -> None:
    data = ProceduralMatting((96, 96), 6, seed=2, kinds=(kind,))
    between = [((a := tensors(data[i])["alpha"]) > 0.02).logical_and(a < 0.98).float().mean() for i in range(6)]
    assert max(between) > 0.02


def test_items_depend_on_split_seed_epoch_and_index_alone() -> None:
    data = ProceduralMatting(SIZE, 10, seed=3)
    again = ProceduralMatting(SIZE, 10, seed=3)
    again[4, 2]  # what was made before does not matter
    first = tensors(data[1, 7])
    for key, value in tensors(again[1, 7]).items():
        assert torch.equal(value, first[key])
    others = [data[1, 8], data[2, 7], ProceduralMatting(SIZE, 10, seed=4)[1, 7]]
    others.append(ProceduralMatting(SIZE, 10, seed=3, split="test")[1, 7])
    for other in others:
        assert not torch.equal(tensors(other)["image"], first["image"])


def test_test_split_is_the_same_in_every_epoch() -> None:
    data = ProceduralMatting(SIZE, 3, split="test")
    assert torch.equal(tensors(data[0, 1])["image"], tensors(data[5, 1])["image"])


def test_another_process_makes_the_same_item() -> None:
    code = (
        "import hashlib; from pyindexnet.matting.procedural import ProceduralMatting\n"
        f"item = ProceduralMatting({SIZE}, 9, seed=11)[5]\n"
        "print(hashlib.sha256(item['image'].numpy().tobytes() + item['trimap'].numpy().tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    item = tensors(ProceduralMatting(SIZE, 9, seed=11)[5])
    assert hashlib.sha256(item["image"].numpy().tobytes() + item["trimap"].numpy().tobytes()).hexdigest() == there


def test_an_object_that_fills_the_frame_leaves_something_known() -> None:
    data = ProceduralMatting((32, 32), 40, seed=5)
    assert all((tensors(data[i])["alpha"] < 1).any() for i in range(len(data)))
    assert all((tensors(data[i])["alpha"] > 0).any() for i in range(len(data)))


def test_own_cut_outs_and_photographs(tmp_path: Path) -> None:
    cut_outs, photographs = tmp_path / "a", tmp_path / "b"
    cut_outs.mkdir()
    photographs.mkdir()
    rgba = np.zeros((40, 30, 4), np.uint8)
    rgba[10:30, 8:22] = (0, 0, 255, 255)  # BGRA: red, and black where it is transparent
    cv2.imwrite(str(cut_outs / "red.png"), rgba)
    cv2.imwrite(str(photographs / "blue.png"), np.full((20, 90, 3), (255, 0, 0), np.uint8))
    data = ProceduralMatting(SIZE, 6, foregrounds=cut_outs, backgrounds=photographs, share=1.0)
    for index in range(len(data)):
        item = tensors(data[index])
        assert str(data[index]["name"]).partition("-")[0].split("+")[0] in ("red", "moving red")
        behind = item["background"].mean((1, 2))
        assert behind[2] > behind[0] + 0.3
        seen = item["alpha"][0] > 0.9
        assert seen.any()
        mixed = item["foreground"][:, item["alpha"][0].gt(0.1).logical_and(item["alpha"][0] < 0.9)]
        if mixed.numel():  # the black below transparency does not bleed into the edge
            assert (mixed[0] - item["foreground"][0][seen].mean()).abs().max() < 0.5


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        ProceduralMatting(SIZE, foregrounds=tmp_path / "absent")
    with pytest.raises(ValueError, match="has no pictures"):
        ProceduralMatting(SIZE, backgrounds=tmp_path)
    cv2.imwrite(str(tmp_path / "opaque.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"opaque\.png: must have an alpha channel, got mode RGB"):
        ProceduralMatting(SIZE, foregrounds=tmp_path, share=1.0)[0]
    (tmp_path / "opaque.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"opaque\.png"):
        ProceduralMatting(SIZE, backgrounds=tmp_path, share=1.0)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (31, 64)}, "size must be at least 32 x 32"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
        ({"share": 1.5}, "share must be in"),
        ({"kinds": ("wool",)}, "kinds must be of hair"),
        ({"trimap_radius": (5, 2)}, "trimap_radius must be"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProceduralMatting(**options)  # type: ignore[arg-type]


def test_index_out_of_range() -> None:
    with pytest.raises(IndexError, match=r"index must be in \[0, 2\), got 2"):
        ProceduralMatting(SIZE, 2)[2]


def test_sheet_holds_three_pictures_of_each_item() -> None:
    data = ProceduralMatting(SIZE, 3)
    sheet = sample_sheet([data[i] for i in range(3)], columns=2, side=24)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 28 + 4, 6 * 36 + 4, 3)
    assert (sheet[32:56, 4 + 3 * 36 :] == 255).all()  # the cell without an item
