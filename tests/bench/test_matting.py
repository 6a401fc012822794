# SPDX-License-Identifier: Apache-2.0
"""The benchmark of metrics and loader, on tiny pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from bench import matting


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "setNumThreads", lambda count: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(matting, "tune_allocator", lambda: True)


def test_pair_is_worth_measuring() -> None:
    prediction, alpha, trimap = matting.make_pair(120)
    assert set(np.unique(trimap)) == {0, 128, 255}
    assert ((alpha > 0) & (alpha < 1)).mean() > 0.05
    found = matting.evaluate_pair(prediction, alpha, trimap)
    assert all(value > 0 for value in found.values())


def test_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert matting.main(["metrics", "--size", "60", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line.split(" | ")[0] for line in lines[2:7]] == ["| sad", "| mse", "| grad", "| conn", "| evaluate_pair"]
    assert all("| 60x60 |" in line for line in lines[2:7])


def test_loader(capsys: pytest.CaptureFixture[str]) -> None:
    assert matting.main(["loader", "--source", "80", "100", "--recipe", "indexnet", "--rounds", "3"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.split("\n")[2:6]]
    assert [row[1] for row in rows] == ["floor", "decode", "items, decoded", "items, from files"]
    assert float(rows[0][4]) == 1
    for row in rows:
        assert float(row[2]) * float(row[3]) == pytest.approx(1000, rel=0.02)  # three digits each
