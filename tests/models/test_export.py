# SPDX-License-Identifier: Apache-2.0
"""Exported networks agree with PyTorch: ONNX in ONNX Runtime, the others in a fresh process; errors leave no file."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyindexnet.cli import app
from pyindexnet.models import create_model
from pyindexnet.models.export import export_model
from pyindexnet.nn import GLF, TMP, DepthwiseIndexNetwork, IndexedResampling
from pyindexnet.nn.carafe import CARAFE
from pyindexnet.testing.parity import tolerance

MULTIPLE = 4


class Every(nn.Module):
    """Every kind of operator once: indexed pooling, skip and upsampling, trimap-guided pooling, fusion, CARAFE."""

    size_rule = (MULTIPLE, 0)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.index = IndexedResampling(DepthwiseIndexNetwork(4, "m2o", context=False))
        self.context = TMP(4, 2, kernel_sizes=(5, 3))
        self.fuse = GLF(8, 4, 8, 4, global_channels=8, group_channels=4, kernel_size=3)
        self.carafe = CARAFE(4, kernel_size=3, compressed_channels=None)
        self.head = nn.Conv2d(4, 1, 3, padding=1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        half, skip, guide = self.index.reduce(x, keep=True)
        context = self.context(half, half[:, :1].abs())
        y = self.fuse(context, skip, context)
        return self.head(y + self.index.restore(self.carafe(half)[:, :, ::2, ::2], guide))


class Indexed(nn.Module):
    """The indexed operators alone: compiling ahead of time takes long."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.index = IndexedResampling(DepthwiseIndexNetwork(4, "m2o", context=False, nonlinear=False))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        half, _, guide = self.index.reduce(x, keep=False)
        return self.index.restore(half, guide)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(height))


def assert_agrees(model: nn.Module, x: Tensor, value: np.ndarray) -> None:
    """By the tolerance rule, as another float32 form of the same network."""
    with torch.no_grad():
        float32 = model(x)
        exact = model.double()(x.double())
    model.float()
    terms = sum(p.numel() for p in model.parameters())
    bound = tolerance(exact, float((float32 - exact).abs().max()), terms, torch.float32)
    assert value.shape == tuple(exact.shape)
    assert np.abs(value - exact.numpy()).max() <= bound


def test_onnx_of_every_operator_at_other_sizes(tmp_path: Path) -> None:
    """Standard operators alone, height and width free."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = Every()
    export_model(model, tmp_path / "m.onnx", "onnx", image(16, 24), dynamic=True, multiple=MULTIPLE)
    graph = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert os.listdir(tmp_path) == ["m.onnx"]
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    for size in ((16, 24), (32, 8), (20, 36)):
        assert_agrees(model, image(*size), session.run(None, {"image": image(*size).numpy()})[0])


LOAD = """
import sys, numpy, torch, pyindexnet
x = torch.from_numpy(numpy.load(sys.argv[2]))
if sys.argv[3] == "aoti":
    run = torch._inductor.aoti_load_package(sys.argv[1])
else:
    run = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    numpy.save(sys.argv[4], run(x).numpy())
"""


@pytest.mark.parametrize("format", ["torch-export", "aoti"])
def test_program_in_a_fresh_process(format: str, tmp_path: Path) -> None:
    """The fused operators stay: the process has only them."""
    model = Every() if format == "torch-export" else Indexed()
    x = image(16, 24)
    if format == "torch-export":
        export_model(model, tmp_path / "m.pt2", format, image(8, 16), dynamic=True, multiple=MULTIPLE)
        program = torch.export.load(tmp_path / "m.pt2")
        used = {str(node.target) for node in program.graph.nodes if "pyindexnet" in str(node.target)}
        assert {name.split(".")[1] for name in used} >= {"indexed_pool_skip", "indexed_upsample", "non_background_pool"}
    else:
        export_model(model, tmp_path / "m.pt2", format, x)
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [str(tmp_path / name) for name in ("m.pt2", "x.npy")]
    subprocess.run([sys.executable, "-c", LOAD, *arguments, format, str(tmp_path / "y.npy")], check=True, capture_output=True)
    assert_agrees(model, x, np.load(tmp_path / "y.npy"))


# --- errors and the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m.onnx", "tflite", (8, 8)), "format must be one of onnx, torch-export, aoti, got 'tflite'"),
        (("m.pt2", "onnx", (8, 8)), "path must end in .onnx for onnx, got"),
        (("m.onnx", "aoti", (8, 8)), "path must end in .pt2 for aoti, got"),
        (("m.pt2", "torch-export", (8, 10)), "H and W multiples of 4, got (1, 4, 8, 10)"),
    ],
)
def test_bad_arguments(arguments, message: str, tmp_path: Path) -> None:
    name, format, size = arguments
    with pytest.raises(ValueError, match="^export_model: ") as raised:
        export_model(Every(), tmp_path / name, format, image(*size), multiple=MULTIPLE)
    assert message in str(raised.value)
    with pytest.raises(ValueError, match="^export_model: example must be at least 8 x 8 where dynamic$"):
        export_model(Every(), tmp_path / "m.pt2", "torch-export", image(4, 8), dynamic=True, multiple=MULTIPLE)
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        export_model(Every().train(), tmp_path / "m.pt2", "torch-export", image(8, 8))
    assert os.listdir(tmp_path) == []


class Broken(Every):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no")


def test_failure_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("before")
    with pytest.raises(ValueError, match="^no$"):
        export_model(Broken(), path, "torch-export", image(8, 8))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["m.pt2"]


def run(capfd, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        app(["export", *map(str, arguments)], prog_name="pyindexnet")
    captured = capfd.readouterr()
    return exit_info.value.code or 0, captured.out, captured.err


TINY = ("indexnet_matting", "--option", "width=0.0625", "--option", "aspp=false", "--size", "64x32")


def test_command(tmp_path: Path, capfd) -> None:
    path = tmp_path / "m.pt2"
    code, out, err = run(capfd, *TINY, "-o", path, "--format", "torch-export")
    assert (code, out) == (0, f"{path}: indexnet_matting, torch-export, 64 x 32\n")
    assert err == "warning: no --weights: the network is untrained (random weights, seed 0)\n"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("indexnet_matting", width=0.0625, aspp=False).eval()
    x = image(32, 64)
    assert_agrees(model, x, torch.export.load(path).module()(x).detach().numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "65x32"), "--size must be multiples of 32 for indexnet_matting, got 65x32"),
        (("--size", "big"), "--size must be WIDTHxHEIGHT, got 'big'"),
        (("--option", "depth=3"), "option of indexnet_matting must be one of"),
        (("-o", "nowhere/m.pt2"), "nowhere: the output folder does not exist"),
    ],
)
def test_command_errors_are_one_line(arguments, message: str, tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, *TINY, "-o", "m.pt2", "--format", "torch-export", *arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_one_line(tmp_path: Path, capfd, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest))
    code, _, err = run(capfd, *TINY, "-o", tmp_path / "m.onnx")
    assert code == 1
    assert err.endswith("onnxscript; install the extra: pip install 'pyindexnet[export]'\n")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []
