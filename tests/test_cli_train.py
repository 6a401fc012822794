# SPDX-License-Identifier: Apache-2.0
"""The commands ``train``, ``evaluate`` and ``generate``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pyindexnet.cli import app
from pyindexnet.matting.training.checkpoints import find_checkpoints, load_state

CONFIG = """
model: {options: {index_network: o2o_stagewise, width: 0.0625, decoder_kernel_size: 3}}
data: {source: procedural, length: 4, kinds: [bubbles]}
crop: 32
batch_size: 2
loss: {alpha: 1}
schedule: {steps: 2}
"""


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(CONFIG)
    done = command("train", folder / "tiny.yaml", "-o", folder / "run", "--device", "cpu", "--quiet", "--set", "log.every=1")
    assert done.exit_code == 0, done.stderr
    assert "weights.safetensors: 2 steps, loss " in done.stdout
    return folder


def test_train_writes_a_run(trained: Path) -> None:
    names = {path.name for path in (trained / "run").iterdir()}
    assert names == {".lock", "log.jsonl", "step_00000002.pt", "weights.safetensors"}
    assert len((trained / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_train_resumes_a_finished_run(trained: Path) -> None:
    arguments = ("train", trained / "tiny.yaml", "-o", trained / "run", "--device", "cpu", "--quiet")
    again = command(*arguments)
    assert again.exit_code == 1
    assert "go on from them with --resume" in again.stderr
    done = command(*arguments, "--resume")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("weights.safetensors: 2 steps\n")


def alive(session: int) -> list[str]:
    """Processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state != "Z":
            found.append(name)
    return found


def becomes(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_the_workers_too(number: signal.Signals, trained: Path, tmp_path: Path) -> None:
    endless = ("--set", "workers=2", "--set", "schedule.steps=1000000", "--set", "checkpoints.every=2")
    words = ("train", trained / "tiny.yaml", "-o", tmp_path, "--device", "cpu", "--quiet", *endless)
    run = subprocess.Popen(
        [sys.executable, "-m", "pyindexnet", *map(str, words)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert becomes(lambda: bool(find_checkpoints(tmp_path)) or run.poll() is not None, 120)
        assert len(alive(run.pid)) >= 4  # trainer, fork server, two workers
        run.send_signal(number)
        _, error = run.communicate(timeout=60)
        assert becomes(lambda: not alive(run.pid), 60), alive(run.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    last = find_checkpoints(tmp_path)[-1]
    assert load_state(last)["step"] == int(last.stem.removeprefix("step_"))
    if number == signal.SIGTERM:
        assert run.returncode == 128 + number
        assert error == f"error: {tmp_path}: ended by SIGTERM; --resume goes on from {last.name}\n"
        assert not list(tmp_path.glob(".*.tmp"))


def test_train_names_a_wrong_key(trained: Path) -> None:
    done = command("train", trained / "tiny.yaml", "-o", trained / "other", "--set", "croop=3")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert "croop is no known key (did you mean crop?)" in done.stderr
    assert not (trained / "other").exists()


def test_evaluate_on_the_generator(trained: Path, tmp_path: Path) -> None:
    weights = trained / "run" / "weights.safetensors"
    options = ("--count", 2, "--size", 32, "--device", "cpu", "-o", tmp_path / "out")
    done = command("evaluate", "procedural", "--weights", weights, *options)
    assert done.exit_code == 0, done.stderr
    assert "mean of all" in done.stdout
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 3
    gallery = cv2.imread(str(tmp_path / "out" / "worst.png"))
    assert gallery.shape[1] == 5 * 244 + 4


def test_generated_folder_can_be_evaluated(tmp_path: Path) -> None:
    made = command("generate", tmp_path / "set", "--count", 2, "--size", 40, "--split", "test", "--kind", "solid")
    assert made.exit_code == 0, made.stderr
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"image", "trimap", "alpha", "foreground", "background"}
    assert cv2.imread(str(next((tmp_path / "set" / "alpha").iterdir())), cv2.IMREAD_UNCHANGED).shape == (40, 40)
    done = command("evaluate", tmp_path / "set", "--tta", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "untouched trimaps" in done.stdout
    again = command("generate", tmp_path / "set", "--count", 1, "--size", 40)
    assert again.exit_code == 1
    assert "set/image: already holds pictures" in again.stderr
    for path in (tmp_path / "set" / "alpha").iterdir():
        path.write_bytes(b"broken")
    none = command("evaluate", tmp_path / "set", "--on-error", "skip")
    assert none.exit_code == 1
    assert "broken one" in none.stderr.splitlines()[0]
    assert none.stderr.splitlines()[-1].endswith("set: no picture could be read")


def test_output_is_tried_before_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyindexnet.matting.evaluation.evaluate_items", None)
    (tmp_path / "metrics.csv").mkdir()
    done = command("evaluate", "procedural", "--count", 1, "--size", 32, "-o", tmp_path)
    assert done.exit_code == 1
    assert "metrics.csv: must be a file, is a folder" in done.stderr


def test_generate_writes_a_sheet(tmp_path: Path) -> None:
    done = command("generate", tmp_path / "sheet.png", "--count", 2, "--size", 32, "--side", 32)
    assert done.exit_code == 0, done.stderr
    assert np.asarray(cv2.imread(str(tmp_path / "sheet.png"))).shape == (40, 220, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "procedural", "--sort", "loss"), "--sort must be one of sad, mse, grad, conn, got 'loss'"),
        (("evaluate", "procedural", "--model", "tmfnet"), "--model and --option need --weights"),
        (("evaluate", "absent"), "absent/image: no such folder"),
        (("generate", "out", "--split", "val"), "split must be one of train, test, got 'val'"),
        (("train", "absent.yaml", "-o", "out"), "absent.yaml: no such file, nor one of the shipped"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
