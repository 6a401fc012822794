# SPDX-License-Identifier: Apache-2.0
"""VGG-16 deep matting: published parameters, the network written out once more, and its options.

The full network has 130 million parameters: it is counted without memory, on the meta device, and run at a small width.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.models import create_model, load_checkpoint, model_from_checkpoint
from pyindexnet.models.checkpoints import CheckpointError, split_columns
from tests.models.golden_network import key_map
from tests.models.training import assert_trains
from tests.shared_data import shared_path

NAME = "deep_matting"
WIDTH = 1 / 16
INDEX_NETWORKS = ["max", "bilinear"]


@pytest.fixture
def published_keys() -> list[list]:
    entry = json.loads(shared_path("golden", "keys", "indexnet_repo_vgg16_deepmatting.keys.json").read_text())
    assert entry["n_parameters"] == 130_545_345
    return entry["state_dict"]


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_published_parameters(index_network: str, published_keys: list[list]) -> None:
    with torch.device("meta"):
        model = create_model(NAME, index_network=index_network)
    assert sum(p.numel() for p in model.parameters()) == 130_545_345
    by_key = split_columns(key_map(model), model.state_dict())
    assert [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in by_key.items()] == published_keys


def test_published_checkpoint(published_keys: list[list]) -> None:
    """Full-size published keys lead to this network; a state dict in them fills every parameter."""
    with torch.device("meta"):
        state = {f"module.{key}": torch.empty(shape) for key, shape, _ in published_keys}
        assert type(model_from_checkpoint(state)).__name__ == "DeepMatting"

    torch.manual_seed(0)
    small = create_model(NAME, width=WIDTH)
    state = {
        key: torch.rand_like(t, dtype=torch.float32) for key, t in split_columns(key_map(small), small.state_dict()).items()
    }
    load_checkpoint(small, state)
    for key, got in split_columns(key_map(small), small.state_dict()).items():
        assert torch.equal(got, state[key].to(got.dtype)), key
    del state["dconv3.bias"]
    with pytest.raises(CheckpointError, match=r"missing dconv3\.bias"):
        load_checkpoint(small, state)


def written_out(state: dict[str, Tensor], x: Tensor, unpool: bool) -> Tensor:
    """The network in plain operations on its published keys, sizes divisible by 32; every maximum is found by hand."""

    def relu_conv(name: str, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding).clamp(min=0)

    masks = []
    for stage, convs in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, convs + 1):
            x = F.conv2d(x, state[f"conv{stage}{i}.weight"], state[f"conv{stage}{i}.bias"], padding=1)
            mean, var, gain, bias = (
                state[f"bn{stage}{i}.{leaf}"].view(-1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / (var + 1e-5).sqrt() * gain + bias).clamp(min=0)
        n, c, h, w = x.shape
        cells = x.view(n, c, h // 2, 2, w // 2, 2).transpose(3, 4).reshape(n, c, h // 2, w // 2, 4)
        first = F.one_hot(cells.argmax(-1), 4).to(x.dtype)
        masks.append(first.view(n, c, h // 2, w // 2, 2, 2).transpose(3, 4).reshape(n, c, h, w))
        x = cells.amax(-1)
    x = relu_conv("dconv6", relu_conv("conv6", x, 3), 0)
    for stage in (5, 4, 3, 2, 1):
        if unpool:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) * masks.pop()
        else:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = relu_conv(f"dconv{stage}", x, 2)
    return F.conv2d(x, state["alpha_pred.weight"], state["alpha_pred.bias"], padding=2)


def settle(model: torch.nn.Module) -> torch.nn.Module:
    """Batch norms and biases that are not at their starting values, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, t in model.state_dict().items():
        if t.dim() == 1:
            low = 0.5 if name.endswith(("running_var", "bn.weight")) else -0.1
            t.copy_(low + 0.2 * torch.rand(t.shape, generator=generator))
    return model.double().eval()


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_network(index_network: str) -> None:
    torch.manual_seed(0)
    model = settle(create_model(NAME, index_network=index_network, width=WIDTH))
    x = torch.randn(2, 4, 64, 96, dtype=torch.float64)
    want = written_out(split_columns(key_map(model), model.state_dict()), x, index_network == "max")
    assert want.std() > 1e-3 * want.abs().max()
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 50), (64, 64)], ids=str)
def test_sizes(index_network: str, size: tuple[int, int]) -> None:
    """Any size, forward and backward, in training mode."""
    torch.manual_seed(0)
    model = create_model(NAME, index_network=index_network, width=WIDTH)
    model.train(min(size) > 1)  # batch statistics need more than one value
    x = torch.randn(2, 4, *size, requires_grad=True)
    assert_trains(model, x)


def test_no_images() -> None:
    assert create_model(NAME, width=WIDTH).eval()(torch.zeros(0, 4, 32, 32)).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_channels_last(index_network: str) -> None:
    torch.manual_seed(0)
    model = settle(create_model(NAME, index_network=index_network, width=WIDTH))
    x = torch.randn(2, 4, 33, 50, dtype=torch.float64)
    want = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_compiles(index_network: str) -> None:
    torch.manual_seed(0)
    model = settle(create_model(NAME, index_network=index_network, width=WIDTH))
    x = torch.randn(1, 4, 33, 50, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index_network": "m2o"}, "deep_matting: index_network must be one of 'max', 'bilinear', got 'm2o'"),
        ({"width": 0.01}, "deep_matting: width must be a number of at least 1/64, got 0.01"),
        ({"width": "1"}, "deep_matting: width must be a number of at least 1/64, got '1'"),
        ({"output_stride": 16}, "option of deep_matting must be one of index_network, width, got 'output_stride'"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(NAME, **options)
