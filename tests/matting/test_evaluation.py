# SPDX-License-Identifier: Apache-2.0
"""Evaluation: orientations, augmentation, tables, galleries, folders."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyindexnet.matting import evaluation
from pyindexnet.matting.procedural import ProceduralMatting

ITEMS = ProceduralMatting((48, 64), 3, split="test")


def truth(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """An oracle that knows the alphas of ITEMS."""
    for item in ITEMS:
        if np.array_equal(np.asarray(item["image"]).transpose(1, 2, 0), image):
            return np.asarray(item["alpha"])[0]
    raise AssertionError("not one of the items")


@pytest.mark.parametrize("orientation", range(evaluation.ORIENTATIONS))
def test_orientations_are_undone(orientation: int) -> None:
    pixels = np.arange(3 * 5 * 3).reshape(3, 5, 3)
    turned = evaluation.orient(pixels, orientation)
    assert turned.shape == ((3, 5, 3), (5, 3, 3))[orientation % 2]
    assert np.array_equal(evaluation.orient_back(turned, orientation), pixels)


def test_the_eight_orientations_differ() -> None:
    pixels = np.arange(16).reshape(4, 4)
    assert len({evaluation.orient(pixels, o).tobytes() for o in range(evaluation.ORIENTATIONS)}) == 8


def test_augmentation_calls_every_scale_and_orientation_and_brings_them_back() -> None:
    """A predictor that is equivariant: its mean over orientations is what it says without them."""
    sizes = []

    def brightness(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        assert trimap.shape == image.shape[:2]
        sizes.append(trimap.shape)
        return image.mean(2)

    rng = np.random.default_rng(0)
    image = cv2.resize(rng.random((4, 5, 3), dtype=np.float32), (60, 40), interpolation=cv2.INTER_LINEAR)
    trimap = np.full((40, 60), 128, np.uint8)
    trimap[:5], trimap[-5:] = 0, 255
    alpha = evaluation.augmented(brightness)(image, trimap)
    assert len(sizes) == 24
    assert set(sizes) == {(30, 45), (45, 30), (40, 60), (60, 40), (50, 75), (75, 50)}
    assert (alpha[:5] == 0).all()
    assert (alpha[-5:] == 1).all()
    plain, inside = image.mean(2)[5:-5], alpha[5:-5]
    assert np.corrcoef(plain.ravel(), inside.ravel())[0, 1] > 0.99  # resampling alone may differ


def test_augmentation_at_scale_one_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SCALES", (1.0,))
    image = np.random.default_rng(1).random((7, 9, 3), dtype=np.float32)
    trimap = np.full((7, 9), 128, np.uint8)
    alpha = evaluation.augmented(lambda image, trimap: image[:, :, 0])(image, trimap)
    assert np.array_equal(alpha, image[:, :, 0])


@pytest.mark.parametrize("at", [(3, 3), (2, 5), (0, 0)])
def test_augmentation_keeps_single_unknown_pixels(at: tuple[int, int]) -> None:
    sizes = set()

    def halves(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        assert (trimap == 128).any()
        sizes.add(trimap.shape)
        return np.full(trimap.shape, 0.5, np.float32)

    trimap = np.zeros((8, 8), np.uint8)
    trimap[at] = 128
    alpha = evaluation.augmented(halves)(np.zeros((8, 8, 3), np.float32), trimap)
    assert sizes == {(6, 6), (8, 8), (10, 10)}
    assert alpha[at] == 0.5
    assert alpha.sum() == 0.5


def test_augmentation_leaves_out_scales_without_known_pixels() -> None:
    sizes = set()

    def halves(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        assert (trimap != 128).any()
        sizes.add(trimap.shape)
        return np.full(trimap.shape, 0.5, np.float32)

    trimap = np.full((3, 3), 128, np.uint8)
    trimap[0, 0] = 255
    alpha = evaluation.augmented(halves)(np.zeros((3, 3, 3), np.float32), trimap)
    assert sizes == {(3, 3), (4, 4)}  # of 2 x 2, none is known as a whole
    assert alpha[0, 0] == 1
    assert (alpha == 0.5).sum() == 8


def test_rows_measure_the_prediction() -> None:
    right = list(evaluation.evaluate_items(truth, ITEMS))
    assert [row.name for row in right] == [item["name"] for item in ITEMS]
    assert all(row.metrics[name] == 0 for row in right for name in evaluation.METRICS)
    wrong = list(evaluation.evaluate_items(evaluation.trimap_baseline, ITEMS))
    for row, item in zip(wrong, ITEMS, strict=True):
        unknown = np.asarray(item["trimap"]) == 0.5
        gold = np.abs(np.asarray(item["alpha"], np.float64)[unknown] - 0.5).sum() / 1000
        assert row.metrics["sad"] == pytest.approx(gold)
    means = evaluation.mean_metrics(wrong)
    assert means["sad"] == pytest.approx(np.mean([row.metrics["sad"] for row in wrong]))
    with pytest.raises(ValueError, match="rows must not be empty"):
        evaluation.mean_metrics([])


def test_csv_and_gallery_show_the_worst_first() -> None:
    rows = list(evaluation.evaluate_items(evaluation.trimap_baseline, ITEMS, side=32))
    lines = list(csv.DictReader(io.StringIO(evaluation.metrics_csv(rows))))
    assert [line["name"] for line in lines] == [row.name for row in rows]
    assert float(lines[0]["sad"]) == pytest.approx(rows[0].metrics["sad"], rel=1e-5)
    gallery, worst = evaluation.worst_cases(rows, "mse", count=2)
    assert [row.metrics["mse"] for row in worst] == sorted((row.metrics["mse"] for row in rows), reverse=True)[:2]
    assert gallery.shape == (2 * 36 + 4, 5 * 36 + 4, 3)
    assert gallery.dtype == np.uint8


def write_folder(folder: Path) -> None:
    for item in ITEMS:
        for key in ("image", "trimap", "alpha"):
            (folder / key).mkdir(exist_ok=True)
            pixels = np.asarray(item[key]).transpose(1, 2, 0)
            levels = evaluation.trimap_levels(pixels) if key == "trimap" else np.rint(pixels * 255).astype(np.uint8)
            cv2.imwrite(str(folder / key / f"{item['name']}.png"), levels[:, :, ::-1])


def test_folder_holds_what_was_written(tmp_path: Path) -> None:
    write_folder(tmp_path)
    found = {item["name"]: item for item in evaluation.open_folder(tmp_path)}
    assert set(found) == {item["name"] for item in ITEMS}
    for item in ITEMS:
        read = found[item["name"]]
        assert np.array_equal(read["trimap"], item["trimap"])
        assert np.array_equal(read["alpha"], item["alpha"])
        assert np.abs(np.asarray(read["image"]) - np.asarray(item["image"])).max() <= 0.5 / 255 + 1e-6


def test_broken_pictures_are_skipped_with_a_warning_where_asked(tmp_path: Path) -> None:
    write_folder(tmp_path)
    name = str(next(iter(ITEMS))["name"])
    (tmp_path / "alpha" / f"{name}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="broken one"):
        list(evaluation.evaluate_items(evaluation.trimap_baseline, evaluation.open_folder(tmp_path)))
    with pytest.warns(UserWarning, match="broken one"):
        rows = list(evaluation.evaluate_items(evaluation.trimap_baseline, evaluation.open_folder(tmp_path, on_error="skip")))
    assert [row.name for row in rows] == sorted(str(item["name"]) for item in ITEMS if item["name"] != name)


def test_folders_that_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of 'plain', 'aim_500', 'composition_1k', got 'flat'"):
        evaluation.open_folder(tmp_path, "flat")
    with pytest.raises(OSError, match="image"):
        evaluation.open_folder(tmp_path)
