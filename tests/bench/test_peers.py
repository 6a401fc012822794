# SPDX-License-Identifier: Apache-2.0
"""What the networks are compared with computes the same."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from bench import peers
from bench.__main__ import main
from bench.peers import _PACKAGES, make_peer
from pyindexnet.testing.parity import error

ENGINES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            any(find_spec(package) is None for package in packages), reason=f"needs {', '.join(packages)}"
        ),
    )
    for name, packages in _PACKAGES.items()
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ENGINES)
def test_output(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 1, 1)).eval()
    peer = make_peer(name, network, dtype)
    if peer is None:
        assert (name, dtype) == ("onnxruntime", torch.bfloat16)
        return
    with torch.inference_mode():
        for size in ((1, 3, 16, 24), (2, 3, 9, 7)):  # each size anew
            x = torch.randn(size)
            gold = copy.deepcopy(network).double()(x.double())
            noise = error(copy.deepcopy(network).to(dtype)(x.to(dtype)), gold)
            y = peer(x.to(dtype).contiguous(memory_format=torch.channels_last))
            assert error(y, gold) <= 10 * noise


SIGNAL = """
import signal, torch
from torch import nn
from bench.peers import make_peer

signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
with torch.inference_mode():
    sides = [make_peer("openvino", nn.Conv2d(3, 4, 3).eval(), torch.float32) for _ in range(3)]
    for side in sides:
        side(torch.zeros(1, 3, 8, 8))
del side
while sides:
    sides.pop(0)  # the oldest first
signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_signals_after_openvino() -> None:
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", SIGNAL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None if package == "onnx" else find_spec(package))
    monkeypatch.setattr(peers, "_PACKAGES", {"onnxruntime": ("onnx",)})
    with pytest.raises(
        ValueError, match=r"bench: --peer onnxruntime needs onnx; install them with: pip install -e '.\[bench\]'"
    ):
        make_peer("onnxruntime", nn.Identity(), torch.float32)


def test_peers_need_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--device", "cuda", "--peer", "openvino", "--no-save"]) == 2
    assert "error: bench: --peer openvino needs --device cpu, got cuda" in capsys.readouterr().err


def test_graphs_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--graphs", "--no-save"]) == 2
    assert "error: bench: --graphs needs --device cuda, got cpu" in capsys.readouterr().err
