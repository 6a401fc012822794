# SPDX-License-Identifier: Apache-2.0
"""Networks beside closed-form and KNN matting."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyindexnet.cli import app
from pyindexnet.matting import comparison, evaluation
from pyindexnet.matting.procedural import ProceduralMatting


def two_colours(side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A soft vertical edge between two plain colours: image, trimap and the alpha, which both methods can find."""
    alpha = np.clip((np.arange(side) - side / 3) / (side / 3), 0, 1).astype(np.float32) * np.ones((side, 1), np.float32)
    red, blue = np.float32([0.9, 0.1, 0.1]), np.float32([0.1, 0.2, 0.8])
    trimap = np.where(alpha == 0, 0, np.where(alpha == 1, 255, 128)).astype(np.uint8)
    trimap[:, side // 3 - 2 : side // 3 + 1] = 128
    return blue + alpha[:, :, None] * (red - blue), trimap, alpha


@pytest.mark.parametrize("name", list(comparison.CLASSICAL))
def test_classical_methods_find_a_plain_edge(name: str) -> None:
    pytest.importorskip("pymatting")
    image, trimap, alpha = two_colours()
    found = comparison.classical(name)(image, trimap)
    assert found.dtype == np.float32
    known = trimap != 128
    assert np.array_equal(found[known], alpha[known])
    assert np.abs(found - alpha).mean() < 0.2 * np.abs(evaluation.trimap_baseline(image, trimap) - alpha).mean()


def test_a_method_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of 'cf', 'knn', got 'closed'"):
        comparison.classical("closed")


def test_every_method_sees_the_same_pictures() -> None:
    items = list(ProceduralMatting((64, 64), 3, split="test", kinds=("solid",), trimap_radius=(1, 10)))
    items[1] = {**items[1], "trimap": items[1]["trimap"].clamp(min=0.5)}  # no known background
    seen: dict[str, list[bytes]] = {"half": [], "zero": []}

    def method(name: str, value: float) -> evaluation.Predict:
        def predict(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
            seen[name].append(image.tobytes())
            return np.where(trimap == 128, np.float32(value), trimap / np.float32(255))

        return predict

    methods = {"half": method("half", 0.5), "zero": method("zero", 0)}
    compared = comparison.gather(comparison.compare(methods, items), methods)
    assert compared.left_out == [items[1]["name"]]
    assert seen["half"] == seen["zero"]
    assert [row.name for row in compared.rows["zero"]] == [items[0]["name"], items[2]["name"]]
    (first, half), (second, zero) = comparison.comparison_means(compared)
    assert (first, second, half["ratio"]) == ("half", "zero", 1)
    assert zero["ratio"] == pytest.approx(zero["sad"] / half["sad"])
    gold = [np.asarray(item["alpha"])[np.asarray(item["trimap"]) == 0.5].sum() / 1000 for item in (items[0], items[2])]
    assert zero["sad"] == pytest.approx(np.mean(gold), rel=1e-5)
    lines = list(csv.DictReader(io.StringIO(comparison.comparison_csv(compared))))
    assert [(line["method"], line["name"]) for line in lines[2:]] == [("zero", row.name) for row in compared.rows["zero"]]
    table = comparison.comparison_markdown(compared).splitlines()
    assert table[2].startswith(f"| half | {half['sad']:.4f} |")
    assert len({line.count("|") for line in table}) == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Cut-outs and photographs: a soft disk, and noise."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("cutouts", "photographs"):
        (root / name).mkdir()
    y, x = np.mgrid[:64, :64] - 31.5
    disk = np.clip((25 - np.hypot(x, y)) / 6, 0, 1)
    colours = np.full((64, 64, 3), (40, 160, 220))
    cv2.imwrite(str(root / "cutouts" / "disk.png"), np.dstack([colours, disk * 255]).astype(np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    cv2.imwrite(str(root / "photographs" / "noise.png"), noise)
    return root / "cutouts", root / "photographs"


def test_command_compares_on_cut_outs(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("pymatting")
    words = ["evaluate", "procedural", "--count", "2", "--size", "48", "--compare", "cf", "--compare", "knn", "--markdown"]
    pictures = ["--foregrounds", str(folders[0]), "--backgrounds", str(folders[1])]
    done = CliRunner().invoke(app, [*words, *pictures, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]] == ["| untouched trimaps", "| closed-form", "| KNN"]
    lines = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert len(lines) == 6
    assert all(re.match("disk", line["name"]) for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["procedural", "--compare", "closed"], "name must be one of 'cf', 'knn', got 'closed'"),
        (["procedural", "--markdown"], "--markdown needs --compare"),
        (["photos", "--backgrounds", "x"], "--foregrounds and --backgrounds are for procedural, got the folder photos"),
    ],
)
def test_command_refuses(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", *words])
    assert done.exit_code == 1
    assert message in done.stderr


def test_command_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymatting", None)
    done = CliRunner().invoke(app, ["evaluate", "procedural", "--count", "1", "--size", "32", "--compare", "knn"])
    assert done.exit_code == 1
    assert "pip install 'pyindexnet[compare]'" in done.stderr
