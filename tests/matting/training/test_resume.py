# SPDX-License-Identifier: Apache-2.0
"""A run that was interrupted, at a checkpoint or by SIGKILL at a random moment, ends as if nothing had happened."""

from __future__ import annotations

import fcntl
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pyindexnet.matting.training import TrainingConfig, checkpoints, train
from pyindexnet.matting.training.monitor import read_log
from tests.matting.training import tiny

STEPS = 24


def flatten(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from flatten(value, f"{path}/{key}")
    else:
        yield path, state


def assert_same_run(first: Path, second: Path) -> None:
    """Last checkpoint, log and weights agree bit for bit."""
    states = [dict(flatten(checkpoints.load_state(checkpoints.find_checkpoints(f)[-1]))) for f in (first, second)]
    assert states[0].keys() == states[1].keys()
    different = [
        key
        for key, value in states[0].items()
        if not (torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key])
    ]
    assert not different
    assert read_log(first) == read_log(second)
    weights = [safetensors.torch.load_file(f / "weights.safetensors") for f in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": {"name": "sgd", "lr": 0.01, "encoder_factor": 0.1}, "accumulate": 2},
        {"optimizer": {"name": "muon", "lr": 0.001, "encoder_factor": 0.1, "matrix_factor": 2}},
        {"freeze_batch_norm": "encoder", "amp": "bfloat16"},
        {"workers": 1},
    ],
    ids=["adam", "sgd", "muon", "frozen-amp", "worker"],
)
def test_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    config = tiny.tiny_config(**options, checkpoints={"every": 2, "keep": 3})
    train(config, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("step_00000006.pt", "step_00000004.pt", "weights.safetensors"):
        (tmp_path / "resumed" / name).unlink()
    (tmp_path / "resumed" / ".step_00000004.pt.1.tmp").write_bytes(b"half of it")
    result = train(config, tmp_path / "resumed", resume=True, quiet=True)
    assert result.steps == 6
    assert not list((tmp_path / "resumed").glob(".*.tmp"))
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def kill_and_resume(config: TrainingConfig, folder: Path, kills: int, seed: int) -> None:
    """Start a run, kill it at random moments so many times, then let it end."""
    moments, context = random.Random(seed), tiny.forkserver()
    for _ in range(kills):
        child = context.Process(target=tiny.run, args=(config.model_dump(mode="json"), folder), kwargs={"resume": True})
        before = len(read_log(folder))
        child.start()
        deadline = time.monotonic() + 300
        while len(read_log(folder)) <= before + 1 and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.25))
        assert child.is_alive(), "the run ended before it could be killed"
        child.kill()
        child.join()
        assert child.exitcode == -9
        rows, found = read_log(folder), checkpoints.find_checkpoints(folder)
        steps = checkpoints.load_state(found[-1])["step"] if found else 0  # never a broken file
        assert steps > rows[-1]["step"] - config.checkpoints.every - 1  # nothing lost but the steps since it
    child = context.Process(target=tiny.run, args=(config.model_dump(mode="json"), folder), kwargs={"resume": True})
    child.start()
    child.join(300)
    assert child.exitcode == 0


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_run_loses_only_the_steps_since_its_checkpoint(tmp_path: Path, kills: int) -> None:
    steps = STEPS * kills // 2
    config = tiny.tiny_config(schedule={"steps": steps}, checkpoints={"every": 3})
    kill_and_resume(config, tmp_path / "killed", kills, seed=kills)
    whole = tiny.forkserver().Process(target=tiny.run, args=(config.model_dump(mode="json"), tmp_path / "whole"))
    whole.start()
    whole.join(600)
    assert whole.exitcode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_folder_with_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    train(tiny.tiny_config(schedule={"steps": 2}), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="has checkpoints; go on from them with --resume"):
        train(tiny.tiny_config(schedule={"steps": 2}), tmp_path, quiet=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    config = tiny.tiny_config(schedule={"steps": 2})
    with open(tmp_path / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="train: another process trains in "):
            train(config, tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert train(config, tmp_path, quiet=True).steps == 2
    assert train(config, tmp_path, resume=True, quiet=True).steps == 2


def test_start_weights_are_not_needed_to_go_on(tmp_path: Path) -> None:
    weights = train(tiny.tiny_config(schedule={"steps": 1}), tmp_path / "a", quiet=True).weights
    config = tiny.tiny_config(model={**tiny.MODEL, "weights": str(weights)}, schedule={"steps": 1})
    train(config, tmp_path / "b", quiet=True)
    weights.unlink()
    assert train(config, tmp_path / "b", resume=True, quiet=True).steps == 1


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    train(tiny.tiny_config(schedule={"steps": 2}), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="is of another configuration: seed differ"):
        train(tiny.tiny_config(schedule={"steps": 2}, seed=1), tmp_path, resume=True, quiet=True)
    done = train(tiny.tiny_config(schedule={"steps": 2}, log={"every": 2}), tmp_path, resume=True, quiet=True)
    assert (done.steps, done.loss) == (2, None)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half"])
def test_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step_00000002.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"step_00000002\.pt: cannot be read"):
        train(tiny.tiny_config(), tmp_path, resume=True, quiet=True)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(tiny.tiny_config(checkpoints={"every": 1, "keep": 2}), tmp_path, quiet=True)
    assert [path.name for path in checkpoints.find_checkpoints(tmp_path)] == ["step_00000005.pt", "step_00000006.pt"]
