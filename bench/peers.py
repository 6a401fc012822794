# SPDX-License-Identifier: Apache-2.0
"""What else a user could run a network with: compilers and inference engines. They get the network in its published formulas.

Each is a module, made for one input size at its first call, so that it is checked and timed as every other side.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .results import MAX_AUTOTUNE

_PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
#: That run networks on the CPU alone.
ENGINES = tuple(_PACKAGES)
#: Of the command's ``--peer``.
PEERS = ("freezing", MAX_AUTOTUNE, *ENGINES)


class Engine(nn.Module):
    """A network as an inference engine runs it, on the CPU, with PyTorch's number of threads.

    Args:
        build: makes, from the network and an input, a function of an array that gives an array.
        network: in float32, in evaluation mode when it is first called.
    Shape: that of ``network``, inputs of any dtype; the output is float32.
    """

    def __init__(self, build: Callable[[nn.Module, Tensor], Callable[[Any], Any]], network: nn.Module) -> None:
        super().__init__()
        self._build, self._network = build, network
        self._made: dict[torch.Size, Callable[[Any], Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        if x.shape not in self._made:
            with torch.inference_mode(False), torch.no_grad():  # what is exported must not be inference tensors
                self._made = {x.shape: self._build(self._network, torch.zeros(x.shape))}
        return torch.from_numpy(self._made[x.shape](x.numpy()))


@functools.cache
def _openvino_core() -> Any:
    # One for the process: a core's CPU plugin puts its own alternate stack for signals in place, and plugins that end in
    # another order than they began leave one that is unmapped. The next signal with a handler then ends the process.
    import openvino

    return openvino.Core()


def _openvino(dtype: torch.dtype) -> Callable[[nn.Module, Tensor], Callable[[Any], Any]]:
    def build(network: nn.Module, x: Tensor) -> Callable[[Any], Any]:
        import openvino

        converted = openvino.convert_model(network, example_input=x, input=list(x.shape))
        config = {
            "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = _openvino_core().compile_model(converted, "CPU", config).create_infer_request()
        return lambda array: request.infer({0: array})[0]

    return build


def _onnxruntime(network: nn.Module, x: Tensor) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network, (x,), path, input_names=["x"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda array: session.run(None, {"x": array})[0]


def make_peer(name: str, network: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The network, in float32, as a peer runs it in ``dtype``; None where the peer does not offer that.

    Raises:
        ValueError: a package that the peer needs is not installed.
    """
    missing = [package for package in _PACKAGES.get(name, ()) if find_spec(package) is None]
    if missing:
        raise ValueError(f"bench: --peer {name} needs {', '.join(missing)}; install them with: pip install -e '.[bench]'")
    if name == "freezing":
        network.to(dtype)
        compiled: Any = torch.compile(network, dynamic=False, options={"freezing": True})
        return compiled
    if name == "openvino":
        return Engine(_openvino(dtype), network)
    return Engine(_onnxruntime, network) if dtype == torch.float32 else None
