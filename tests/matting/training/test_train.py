# SPDX-License-Identifier: Apache-2.0
"""The loop: accumulation, processes, frozen batch norms, mixed precision, what is written and what is refused."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import nn

from pyindexnet.matting.training import checkpoints, loop, train
from pyindexnet.matting.training.monitor import read_log
from pyindexnet.matting.training.optimization import freeze_batch_norms
from pyindexnet.models import create_model, load_checkpoint, model_from_checkpoint
from pyindexnet.nn.inplace_abn import InPlaceABN
from tests.matting.training import tiny


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder) if "loss" in row]


def test_loss_falls_and_weights_load(tmp_path: Path) -> None:
    config = tiny.tiny_config(
        data={"source": "procedural", "length": 10, "kinds": ["bubbles"]},
        schedule={"steps": 40},
        optimizer={"lr": 0.003},
        export="float16",
    )
    result = train(config, tmp_path, quiet=True)
    course = losses(tmp_path)
    assert len(course) == 40
    assert sum(course[-10:]) < 0.8 * sum(course[:10])
    with safetensors.safe_open(result.weights, framework="pt") as file:
        assert json.loads(file.metadata()["training"]) == config.model_dump(mode="json")
        assert all(file.get_tensor(k).dtype in (torch.float16, torch.int64) for k in file.keys())  # noqa: SIM118
    model = model_from_checkpoint(result.weights)
    assert model.config == config.model.model_dump(include={"name", "options"})


def test_start_weights_are_loaded(tmp_path: Path) -> None:
    first = train(tiny.tiny_config(schedule={"steps": 1}), tmp_path / "a", quiet=True)
    model = {**tiny.MODEL, "weights": str(first.weights)}
    config = tiny.tiny_config(model=model, schedule={"steps": 1}, optimizer={"lr": 1e-30})
    second = train(config, tmp_path / "b", quiet=True)
    kernels = [[p for p in model_from_checkpoint(r.weights).parameters() if p.dim() > 1] for r in (first, second)]
    assert len(kernels[0]) > 50
    assert all(torch.equal(*pair) for pair in zip(*kernels, strict=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_group(rank: int, port: int, config: dict[str, Any], folder: Path, complaint: Path) -> None:
    """One process of two, with the environment that torchrun gives it; writes an error into a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        tiny.run(config, folder, resume=True)
    except ValueError as error:
        complaint.write_text(str(error))
        raise


def test_two_processes_reproduce_one(tmp_path: Path) -> None:
    """Two gloo processes, a micro-batch each, and one process with two micro-batches: the same losses to the last bit.

    Halving a gradient is exact, so that the order of mean and sum does not matter.
    """
    values = tiny.tiny_config().model_dump(mode="json")
    context, port = tiny.forkserver(), free_port()
    two = [(rank, port, values, tmp_path / "two", tmp_path / f"{rank}.txt") for rank in range(2)]
    children = [context.Process(target=in_group, args=arguments) for arguments in two]
    # a child too, so that it computes with one thread as they do: the order of a sum depends on it
    children.append(context.Process(target=tiny.run, args=({**values, "accumulate": 2}, tmp_path / "one")))
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(losses(tmp_path / "one")) == 6
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


def test_processes_with_folders_of_their_own_are_refused(tmp_path: Path) -> None:
    config = tiny.tiny_config(schedule={"steps": 2}).model_dump(mode="json")
    train(tiny.tiny_config(schedule={"steps": 2}), tmp_path / "0", quiet=True)
    context, port = tiny.forkserver(), free_port()
    children = [
        context.Process(target=in_group, args=(rank, port, config, tmp_path / str(rank), tmp_path / f"{rank}.txt"))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [1, 1]
    for rank in range(2):
        reason = (tmp_path / f"{rank}.txt").read_text()
        assert "must be the same folder for all processes, they go on from steps [2, 0]" in reason


@pytest.mark.parametrize("where", ["encoder", "all"])
def test_frozen_batch_norms_stay_frozen(tmp_path: Path, where: str) -> None:
    config = tiny.tiny_config(freeze_batch_norm=where, validation={"every": 2, "items": 1, "size": 32}, optimizer={"lr": 0.01})
    result = train(config, tmp_path, quiet=True)
    trained = create_model(config.model.name, **config.model.options)
    load_checkpoint(trained, result.weights)
    fresh = dict(create_model(config.model.name, **config.model.options).named_modules())  # norms start from no random values
    changed = {
        name.split(".")[0]
        for name, module in trained.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for leaf in ("weight", "bias", "running_mean", "running_var")
        if not torch.equal(getattr(module, leaf), getattr(fresh[name], leaf))
    }
    assert "encoder" not in changed
    assert bool(changed) == (where == "encoder")


def test_freezing_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match="freeze_batch_norm must be none or all for a model without an encoder"):
        freeze_batch_norms(nn.Sequential(nn.BatchNorm2d(2)), "encoder")


@pytest.mark.parametrize("where", ["encoder", "all"])
def test_in_place_batch_norms_are_frozen_too(where: str) -> None:
    model = create_model("a2u_matting", width=1 / 32)
    freeze_batch_norms(model, where)
    model.train()
    inside = {id(m) for m in model.encoder.modules()}
    norms = [m for m in model.modules() if isinstance(m, InPlaceABN)]
    assert norms
    for norm in norms:
        frozen = where == "all" or id(norm) in inside
        assert norm.training is not frozen
        assert norm.weight.requires_grad is not frozen
    before = [norm.running_mean.clone() for norm in norms]
    model(torch.randn(2, 4, 32, 32)).sum().backward()
    moved = [not torch.equal(a, norm.running_mean) for a, norm in zip(before, norms, strict=True)]
    assert moved == [norm.training for norm in norms]


def test_all_batch_norms_are_synchronized() -> None:
    model = loop._synchronized(create_model("a2u_matting", width=1 / 32))
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds <= {nn.SyncBatchNorm}
    norms = [m for m in model.modules() if isinstance(m, InPlaceABN)]
    assert norms
    assert all(norm.sync for norm in norms)


def test_error_of_a_worker_is_its_own_line(tmp_path: Path) -> None:
    for folder in ("cutouts", "photographs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text("no picture")
    data = {"source": "composition", "layout": "cutouts", "foregrounds": str(tmp_path / "cutouts")}
    config = tiny.tiny_config(data={**data, "backgrounds": str(tmp_path / "photographs")}, workers=1)
    with pytest.raises(ValueError, match=r"a\.png: not a picture") as caught:
        train(config, tmp_path / "run", quiet=True)
    assert str(caught.value).startswith(str(tmp_path / "cutouts"))
    assert "Traceback" not in str(caught.value)


def test_mattes_are_made_for_tensorboard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "sample_mattes", None)
    train(tiny.tiny_config(schedule={"steps": 1}, validation={"every": 1, "items": 1, "size": 32}), tmp_path, quiet=True)
    assert "test_sad" in read_log(tmp_path)[-1]


def test_validation_and_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny.tiny_config(
        validation={"every": 3, "items": 2, "size": 32}, log={"every": 2, "tensorboard": True, "mattes": 2}
    )
    train(config, tmp_path, quiet=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path))  # stored in float32
    assert [event.step for event in events.Scalars("test_sad")] == [3, 6]
    assert (events.Images("mattes")[0].height, events.Images("mattes")[0].width) == (64, 128)


def test_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"log\.tensorboard: needs TensorBoard, pip install 'pyindexnet\[train\]'"):
        train(tiny.tiny_config(log={"tensorboard": True}), tmp_path, quiet=True)


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    config = tiny.tiny_config(schedule={"steps": 20}, optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(ValueError, match=r"the loss must be finite, got .* in step \d+; lower optimizer.lr"):
        train(config, tmp_path, quiet=True)
    for path in checkpoints.find_checkpoints(tmp_path):
        checkpoints.load_state(path)


def test_batch_that_does_not_divide_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyindexnet.matting.training.data import StepSampler

    with pytest.raises(ValueError, match=r"batch_size must be a multiple of accumulate \* processes \(6\), got 4"):
        StepSampler(10, 4, accumulate=2, seed=0, rank=0, count=3, start=0, stop=1)


def test_sync_batch_norm_needs_cuda(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync_batch_norm must be false on a CPU"):
        train(tiny.tiny_config(sync_batch_norm=True), tmp_path, quiet=True)
