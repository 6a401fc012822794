# SPDX-License-Identifier: Apache-2.0
"""Configuration, order of the items, learning rate, network input."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pyindexnet.matting.inference import stack_input
from pyindexnet.matting.procedural import ProceduralMatting
from pyindexnet.matting.training import check_config, load_config, shipped_configs
from pyindexnet.matting.training.config import Schedule
from pyindexnet.matting.training.data import StepSampler, make_loader, make_source, network_input
from pyindexnet.matting.training.optimization import schedule_factor

LEAST = {"loss": {"alpha": 1}, "schedule": {"steps": 2}}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_build_their_model(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        model = config.model.build()
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 4}, r"c\.yaml: batchsize is no known key \(did you mean batch_size\?\)"),
        ({"loss": {"alpha": 1, "compositon": 1}}, r"loss\.compositon is no known key \(did you mean composition\?\)"),
        ({"loss": {}}, "one of alpha, composition, laplacian, gradient, multiscale must be above 0"),
        ({"loss": {"alpha": 1, "convention": "dim"}}, "loss: convention must be one of paper, .*, got 'dim'"),
        ({"crop": 8, "seed": -1}, r"crop: .*, got 8; seed: .*, got -1"),
        ({"schedule": {}}, r"schedule\.steps: field required"),
        ({"schedule": {"steps": 2, "warmup": 2}}, "warmup must be below steps, got 2"),
        ({"schedule": {"steps": 9, "milestones": [5, 3]}}, r"milestones must increase, got \(5, 3\)"),
        ({"model": {"name": "indexnet"}}, "model: create_model: name must be one of"),
        ({"model": {"options": {"widht": 1}}}, "model: options must be of .* got 'widht'"),
        ({"batch_size": 6, "accumulate": 4}, r"batch_size must be a multiple of accumulate \(4\), got 6"),
        ({"data": {"length": 3}}, r"data: .*source"),
        ({"data": {"source": "procedural", "lenght": 3}}, r"data\.lenght is no known key \(did you mean length\?\)"),
        ({"data": {"source": "composition", "foregrounds": "a", "backgrounds": "b", "recipe": "dim"}}, "data: recipe must be"),
        ({"composition": 0.5}, r"composition is no known key"),
        ({"loss": {"composition": -1}}, r"c\.yaml: loss\.composition: .*, got -1"),
        ({"optimizer": {"lr": "fast"}}, r"optimizer\.lr: .*, got 'fast'"),
        ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr: .*finite"),
    ],
)
def test_problems_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config({**LEAST, **values}, "c.yaml")


def test_overrides_replace_values(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("loss: {alpha: 1}\nschedule: {steps: 5}\n")
    config = load_config(path, ["schedule.steps=7", "optimizer.lr=0.5", "model.options={width: 0.5}"])
    assert (config.schedule.steps, config.optimizer.lr, config.model.options) == (7, 0.5, {"width": 0.5})
    with pytest.raises(ValueError, match="--set must be KEY=VALUE, got 'crop'"):
        load_config(path, ["crop"])
    with pytest.raises(ValueError, match="crop holds a value, no keys"):
        load_config(path, ["crop=64", "crop.size=3"])
    with pytest.raises(ValueError, match=r"--set crop=\[: the value is not YAML"):
        load_config(path, ["crop=["])


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("- 1", "must be a mapping of keys, got list")])
def test_files_that_hold_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "run.yaml")


def test_absent_configuration_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="absent.yaml: no such file, nor one of the shipped .*procedural"):
        load_config("absent.yaml")


def positions(accumulate: int, count: int, start: int = 0) -> list[list[tuple[int, int]]]:
    """Items of each step, over all processes in order."""
    samplers = [
        StepSampler(10, 8, accumulate=accumulate, seed=3, rank=rank, count=count, start=start, stop=5) for rank in range(count)
    ]
    micro = list(zip(*samplers, strict=True))
    steps = [micro[i : i + accumulate] for i in range(0, len(micro), accumulate)]
    return [[p for batches in step for batch in batches for p in batch] for step in steps]


@pytest.mark.parametrize(("accumulate", "count"), [(2, 1), (1, 2), (4, 2), (1, 8)])
def test_items_of_a_step_do_not_depend_on_how_it_is_cut(accumulate: int, count: int) -> None:
    assert positions(accumulate, count) == positions(1, 1)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    flat = [p for step in positions(1, 1) for p in step]
    epochs = [[index for epoch, index in flat if epoch == e] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert positions(1, 1, start=3) == positions(1, 1)[3:]


def test_workers_do_not_change_the_batches() -> None:
    source = ProceduralMatting((32, 32), 10, seed=1)
    sampler = StepSampler(10, 4, accumulate=1, seed=0, rank=0, count=1, start=0, stop=3)
    batches = [list(make_loader(source, sampler, workers=workers, pin=False)) for workers in (0, 2)]
    assert len(batches[0]) == 3
    for here, there in zip(*batches, strict=True):
        assert here["name"] == there["name"]
        assert torch.equal(here["image"], there["image"])


def test_own_pictures_are_composed(tmp_path: Path) -> None:
    for folder in ("cutouts", "photographs"):
        (tmp_path / folder).mkdir()
    rgba = np.full((60, 60, 4), 255, np.uint8)
    rgba[:20, :, 3], rgba[20:30, :, 3] = 0, 128
    cv2.imwrite(str(tmp_path / "cutouts" / "a.png"), rgba)
    cv2.imwrite(str(tmp_path / "photographs" / "b.png"), np.zeros((50, 70, 3), np.uint8))
    data = {"source": "composition", "foregrounds": str(tmp_path / "cutouts"), "backgrounds": str(tmp_path / "photographs")}
    source = make_source(check_config({**LEAST, "data": {**data, "length": 3}, "crop": 40}))
    assert len(source) == 3
    item = source[(1, 2)]
    assert item["image"].shape == (3, 40, 40)
    assert set(item) >= {"image", "trimap", "alpha", "foreground", "background", "name"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"milestones": (4, 6)}, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"warmup": 4, "milestones": (6,)}, [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1]),
        ({"kind": "cosine"}, [(1 + np.cos(np.pi * s / 8)) / 2 for s in range(8)]),
        ({"kind": "poly", "power": 2}, [(1 - s / 8) ** 2 for s in range(8)]),
    ],
    ids=["steps", "warmup", "cosine", "poly"],
)
def test_learning_rate(values: dict[str, object], expected: list[float]) -> None:
    schedule = Schedule(steps=8, **values)  # type: ignore[arg-type]
    assert [schedule_factor(schedule, step) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("encoding", ["level", "one_hot"])
def test_network_input_is_that_of_inference(encoding: str) -> None:
    item = ProceduralMatting((32, 40), 1)[0]
    image, trimap = item["image"], item["trimap"]
    assert isinstance(image, torch.Tensor)
    assert isinstance(trimap, torch.Tensor)
    levels = np.where(trimap[0] == 0.5, 128, trimap[0] * 255).astype(np.uint8)
    gold = stack_input(image.permute(1, 2, 0).double().numpy(), levels, encoding)  # type: ignore[arg-type]
    got = network_input(image[None], trimap[None], encoding)[0]  # type: ignore[arg-type]
    assert torch.equal(got, torch.from_numpy(gold).permute(2, 0, 1))
