# SPDX-License-Identifier: Apache-2.0
"""Networks as CUDA graphs: what a capture forbids, without a GPU; equality and compiled copies on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyindexnet.models import create_model, fuse
from pyindexnet.nn import GraphedModule

from .test_fuse import CASES, IDS, assert_same, trained


class StaysOnTheDevice(TorchDispatchMode):
    """Fails where an operator sees a tensor that is not on ``meta``, which stands for the GPU: a copy from the host.

    To read a value, which on a GPU waits for it, is an error on ``meta`` anyway.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            assert not isinstance(t, Tensor) or t.device.type == "meta", f"{func}: {t.device}"
        return out


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_networks_can_be_captured(name: str, options: dict[str, Any]) -> None:
    """Neither they nor their fused copies copy from the host or read a value."""
    model = create_model(name, **options).eval()
    x = torch.empty(1, 6 if name.startswith("tmfnet") else 4, 75, 61, device="meta")
    for network in (model.fuse().to("meta"), model.to("meta")):
        with torch.no_grad(), StaysOnTheDevice():
            assert network(x).shape == (1, 1, 75, 61)


class FromTheHost(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0])


class ReadsAValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.max())


@pytest.mark.parametrize(
    ("module", "error", "message"), [(FromTheHost, AssertionError, "cpu"), (ReadsAValue, RuntimeError, "meta tensors")]
)
def test_what_cannot_be_captured_is_found(module: type[nn.Module], error: type[Exception], message: str) -> None:
    with StaysOnTheDevice(), pytest.raises(error, match=message):
        module()(torch.empty(2, device="meta"))


def test_fuse() -> None:
    model = create_model("deeplabv3plus_matting", width=1 / 4)
    module = fuse(model, cuda_graph=True)
    assert isinstance(module, GraphedModule)
    assert module.state_dict().keys() == {f"model.{name}" for name in model.fuse().state_dict()}
    with torch.inference_mode(), pytest.raises(ValueError, match="^GraphedModule: x must be on a CUDA device, got cpu$"):
        module(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="^fuse: compile and cuda_graph must not both be given"):
        fuse(model, compile=True, cuda_graph=True)


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Convolutions of float32 without TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(module: nn.Module) -> Any:
    return lambda x: module(x.cuda()).cpu()


@pytest.mark.gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_replays_on_a_gpu(name: str, options: dict[str, Any]) -> None:
    model, x = trained(name, options)
    assert_same(on_gpu(model.fuse().cuda()), model, x)
    module = fuse(model, cuda_graph=True).cuda()
    for picture in (x, x.flip(2), x[..., :48]):  # captured, replayed, captured in another size
        assert_same(on_gpu(module), model, picture)
    assert len(module._graphs) == 2
    first, second = x.cuda(), x.flip(2).cuda()
    with torch.inference_mode():
        y = module(first)
        kept = y.clone()
        module(second)
        assert torch.equal(y, kept)  # a copy, which the next replay does not touch
        assert torch.equal(module(first), kept)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_on_a_gpu(dtype: torch.dtype) -> None:
    """Converted, and under autocast."""
    model, x = trained("indexnet_matting", {"width": 1 / 4, "index_network": "m2o"})
    assert_same(on_gpu(fuse(model, cuda_graph=True).to(dtype).cuda()), model, x, dtype)
    eager, module = model.cuda(), GraphedModule(model)
    with torch.inference_mode():
        for picture in (x.cuda(), x.flip(2).cuda()):
            with torch.autocast("cuda", dtype=dtype):
                expected, found = eager(picture), module(picture)
            torch.testing.assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("full_precision")
def test_compiled_on_a_gpu() -> None:
    """Inductor with freezing."""
    torch._dynamo.reset()
    model, x = trained("indexnet_matting", {"width": 1 / 4, "index_network": "m2o"})
    module = fuse(fuse(model).cuda(), compile=True)
    with torch.inference_mode():
        assert_same(on_gpu(module), model, x)
