# SPDX-License-Identifier: Apache-2.0
"""``pyindexnet matte``, as a user runs it: one line where something is wrong."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from pyindexnet import _console
from pyindexnet.matting import write_pictures
from pyindexnet.models import create_model, save_checkpoint
from tests.matte.run import TINY, tiny_model, truncated
from tests.matting.pictures import photograph, trimap

BROKEN_FILES = {
    "missing": (None, "no such file"),
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "not a picture, or a broken one"),
    "truncated PNG": (truncated(".png"), "cannot be decoded: image file is truncated"),
    "truncated 16-bit PNG": (truncated(".png", np.uint16), "cannot be decoded: image file is truncated"),
    "truncated JPEG": (truncated(".jpg"), "cannot be decoded: image file is truncated"),
    "truncated TIFF": (truncated(".tif"), "not a picture, or a broken one"),
}


@pytest.mark.parametrize("role", ["i.png", "t.png"])
@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_broken_files(command, folder, kind, role):
    content, message = BROKEN_FILES[kind]
    Path(role).unlink()
    if content is not None:
        Path(role).write_bytes(content)
    error = command("i.png", "t.png", "-o", "out/a.png", *TINY).one_error()
    assert error.startswith(f"{role}: {message}")
    assert not os.listdir("out")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (trimap(45, 61), "t.png: size must be that of the image, 60 x 45, got 61 x 45"),
        (np.where(trimap() == 128, 0, trimap()).astype(np.uint8), "t.png: has no unknown pixels"),
        (np.full((45, 60), 128, np.uint8), "t.png: has no known pixels"),
        (photograph(), "t.png: must be grey, got colours; are image and trimap swapped?"),
    ],
    ids=["another size", "no unknown", "no known", "coloured"],
)
def test_unusable_trimaps(command, folder, levels, message):
    write_pictures({folder / "t.png": levels})
    assert message in command("i.png", "t.png", "-o", "out/a.png", *TINY).one_error()
    assert not os.listdir("out")


class Intruder:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("intruder"),))


def _pickled_code(path: Path) -> None:
    torch.save({"layer0.0.weight": Intruder()}, path)


def _wrong_keys(path: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, path)


def _wrong_shapes(path: Path) -> None:
    save_checkpoint(create_model("indexnet_matting", width=0.5), path)


def _wrong_model(path: Path) -> None:
    torch.save(tiny_model(0), path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (None, "w.safetensors", "w.safetensors"),
        (None, "w.pth", "w.pth"),
        (lambda path: path.write_bytes(b"no checkpoint"), "w.pth", "w.pth"),
        (lambda path: path.write_bytes(b"no checkpoint"), "w.safetensors", "w.safetensors"),
        (lambda path: path.write_bytes(b"hello world"), "w.pth", "w.pth"),
        (_wrong_keys, "w.pth", "some.weight"),
        (_wrong_shapes, "w.safetensors", "w.safetensors"),
        (_pickled_code, "w.pth", "w.pth"),
        (_wrong_model, "w.pt", "w.pt"),
    ],
    ids=[
        "missing",
        "missing pth",
        "garbage pth",
        "garbage safetensors",
        "other garbage",
        "keys",
        "shapes",
        "code",
        "whole model",
    ],
)
def test_unusable_checkpoints(command, folder, write, name, message):
    if write is not None:
        write(Path(name))
    error = command("i.png", "t.png", "-o", "out/a.png", "--weights", name, *TINY).one_error()
    assert message in error
    assert len(error) < 1000
    assert not os.listdir("out")
    assert not Path("intruder").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nonesuch"], "name must be one of .*, got 'nonesuch'"),
        (["--option", "colour=red"], "option of indexnet_matting must be one of .*, got 'colour'"),
        (["--option", "index_network=x"], "index_network must be one of .*, got 'x'"),
        (["--option", "width"], "--option must be KEY=VALUE, got 'width'"),
        (["--backend", "vulkan"], "must be one of reference, cpu, cuda, triton, got 'vulkan'"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:"], "--device must be cpu, cuda or cuda:N, got 'cuda:'"),
        (["--device", "cuda:99"], r"--device cuda:99: PyTorch sees \d+ CUDA devices"),
        (["--backend", "cuda"], "backend cuda cannot run: "),
        (["--background", "nowhere.png"], "background: must be an existing picture or a colour, got 'nowhere.png'"),
        (["-o", "none/a.png"], "none: the output folder does not exist"),
        (["-o", "t.png/a.png"], "t.png: the output folder is a file"),
        (["-o", "i.png"], "i.png: the output would overwrite an input"),
        (["-o", "out/../t.png"], "out/../t.png: the output would overwrite an input"),
        (["-o", "out/a.gif"], r"out/a.gif: output must end in \.png, "),
        (["-o", "out/a.jpg", "--bit-depth", "16"], "JPEG holds 8 bits per channel, not 16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments(command, folder, arguments, message):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    error = command("i.png", "t.png", "-o", "out/a.png", *TINY, *arguments).one_error()
    assert re.search(message, error), error
    assert not os.listdir("out")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_background_that_is_broken(command, folder):
    Path("b.png").write_bytes(truncated(".png"))
    error = command("i.png", "t.png", "-o", "out/a.png", "--background", "b.png", *TINY).one_error()
    assert error.startswith("b.png: cannot be decoded")


def test_weights_are_not_overwritten(command, folder):
    save_checkpoint(tiny_model(0), Path("w.safetensors"))
    Path("a.png").symlink_to("w.safetensors")
    error = command("i.png", "t.png", "-o", "a.png", "--weights", "w.safetensors", *TINY).one_error()
    assert error == "a.png: the output would overwrite an input"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot write to")
def test_unwritable_folder(command, folder):
    error = command("i.png", "t.png", "-o", "/proc/a.png", *TINY).one_error()
    assert error.startswith("/proc")
    assert "cannot be written" in error


def test_full_disk_leaves_the_old_output(command, folder, monkeypatch):
    Path("out/a.png").write_bytes(b"old")

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    error = command("i.png", "t.png", "-o", "out/a.png", "--background", "white", *TINY).one_error()
    assert "No space left on device" in error
    assert os.listdir("out") == ["a.png"]
    assert Path("out/a.png").read_bytes() == b"old"


def test_weights_name_their_own_network(command, folder):
    """A file that tells its network is not compared with the default one."""
    tensors = create_model("a2u_matting", width=0.125).state_dict()
    config = json.dumps({"name": "a2u_matting", "options": {"width": 0.125}})
    del tensors["head.1.weight"]
    safetensors.torch.save_file(tensors, "w.safetensors", {"pyindexnet": config})
    error = command("i.png", "t.png", "-o", "out/a.png", "--weights", "w.safetensors").one_error()
    assert "does not fit A2UMatting: missing head.1.weight" in error


def test_folder_in_place_of_the_composite(command, folder):
    Path("out/a.png").write_bytes(b"old")
    Path("out/a_composite.png").mkdir()
    error = command("i.png", "t.png", "-o", "out/a.png", "--background", "white", *TINY).one_error()
    assert error == "out/a_composite.png: cannot be written: Is a directory"
    assert Path("out/a.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate 20 GiB", "DefaultCPUAllocator: can't allocate memory: you tried"]
)
def test_out_of_memory_is_one_line(message):
    assert _console.input_error(RuntimeError(message)) == "out of memory"


def test_out_of_memory_of_opencv_is_one_line():
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((2, 2), np.float32), (2**31 - 1, 2**20))
    assert _console.input_error(caught.value) == "out of memory"


def test_a_bug_keeps_its_traceback():
    assert _console.input_error(RuntimeError("shape mismatch")) is None
    assert _console.input_error(KeyError("x")) is None
    with pytest.raises(ZeroDivisionError), _console.input_errors():
        raise ZeroDivisionError
