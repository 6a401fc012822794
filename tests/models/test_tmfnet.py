# SPDX-License-Identifier: Apache-2.0
"""TMFNet against the published network, its baseline and ablations, and its options."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyindexnet.models import create_model, load_checkpoint, model_from_checkpoint, save_checkpoint
from pyindexnet.models.checkpoints import CheckpointError, published_key_map, split_columns
from pyindexnet.models.tmfnet import CONTEXTS, FUSIONS
from pyindexnet.nn.fusion import GLOBAL_SOURCES
from tests.golden import GoldenCase, published_state_dict
from tests.models.golden_network import Part, check_gradients, check_output, check_probes, published
from tests.models.training import assert_trains
from tests.shared_data import shared_path

GROUP, CASE = "tmf_full", "tmfnet_resnet50s_os16"
TINY = {"width": 0.125}
ORDERS = ("interleaved", "blocked")


def branch(number: int) -> Part:
    """A published branch of TMP: ours puts out all, behind the encoder's map."""
    return "context", lambda out: out[:, 2048:].chunk(4, 1)[number]


MODULES: dict[str, str | Part] = {
    "encoder.pretrained.conv1": "encoder.stem.2.conv",
    "encoder.pretrained.bn1": "encoder.stem.2.bn",
    **{f"encoder.pretrained.layer{i + 1}": f"encoder.stages.{i}" for i in range(4)},
    **{f"decoder.ppm.{i}": branch(i) for i in range(4)},
    "decoder.conv_up1": "context_merge",
    "decoder.globalpool": ("context_merge", lambda out: out.mean((2, 3), keepdim=True)),
    "decoder.conv_up2": "stages.0",
    "decoder.conv_up3": "stages.1",
    "decoder.conv_up4_1": "stages.2",
    "decoder.conv_up4_2": "head",
}


@pytest.fixture(scope="module", params=ORDERS)
def network(request: pytest.FixtureRequest) -> tuple[GoldenCase, nn.Module]:
    """The published network; into the interleaved one of Eq. 6 its weights are permuted."""
    return published(CASE, "tmfnet", group=GROUP, group_order=request.param)


@pytest.mark.parametrize("which", ["a", "b"])
def test_output(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    check_output(*network, which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_gradients(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    check_gradients(*network, which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_probes(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    check_probes(*network, which, MODULES)


def test_published_keys_and_size() -> None:
    """Every published key is one of ours or a part of one, and the count is the published one."""
    model = create_model("tmfnet")
    keys = json.loads(shared_path("golden", GROUP, f"{CASE}.keys.json").read_text())
    keys = keys["state_dict"] if isinstance(keys, dict) else keys
    ours = split_columns(published_key_map(model) or {}, model.state_dict())
    assert {key: list(t.shape) for key, t in ours.items()} == {key: shape for key, shape, _ in keys}
    assert sum(p.numel() for p in model.parameters()) == 33_859_571


def test_published_weights_tell_their_model() -> None:
    state = published_state_dict(GROUP, CASE)
    model = model_from_checkpoint({"state_dict": {f"module.{key}": t for key, t in state.items()}})
    assert model.config == {"name": "tmfnet", "options": {"group_order": "blocked"}}


def tiny(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    name = options.pop("name", "tmfnet")
    return create_model(name, **TINY, **options)


def picture(size: tuple[int, int], n: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Network input: noise, and a one-hot trimap."""
    colours = torch.randn(n, 3, *size, dtype=dtype)
    levels = torch.randint(3, (n, *size))
    return torch.cat([colours, nn.functional.one_hot(levels, 3).movedim(3, 1).to(dtype)], 1)


def test_group_orders_are_one_network() -> None:
    """Weights in published keys pass between the orders without a change of the function."""
    blocked, interleaved = (tiny(i, group_order=order).double().eval() for i, order in enumerate(("blocked", "interleaved")))
    load_checkpoint(interleaved, split_columns(published_key_map(blocked) or {}, blocked.state_dict()))
    x = picture((32, 48), dtype=torch.float64)
    with torch.no_grad():
        want, got = blocked(x), interleaved(x)
    torch.testing.assert_close(got, want)
    # and it is not so without the permutation
    load_checkpoint(interleaved, blocked.state_dict())
    with torch.no_grad():
        assert (interleaved(x) - want).abs().max() > 0.01 * want.std()


@pytest.mark.parametrize(
    "options",
    [
        *({"context": context} for context in CONTEXTS),
        *({"fusion": fusion} for fusion in FUSIONS),
        *({"global_source": source} for source in GLOBAL_SOURCES),
        {"fusion": ("lf", "static", "glf")},
        {"name": "tmfnet_baseline"},
        {"group_order": "blocked"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (32, 48)], ids=str)
def test_sizes(options: dict[str, Any], size: tuple[int, int]) -> None:
    """Any size, forward and backward; every parameter gets a gradient."""
    model = tiny(**options).eval()
    x = picture(size).requires_grad_()
    assert_trains(model, x)


def test_no_images() -> None:
    assert tiny().eval()(torch.zeros(0, 6, 32, 32)).shape == (0, 1, 32, 32)


def test_background_alone_is_finite() -> None:
    x = picture((32, 32))
    x[:, 3:] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert tiny().eval()(x).isfinite().all()


def test_training_mode() -> None:
    model = tiny()
    model(picture((33, 33))).sum().backward()
    assert model.encoder.stem[0].bn.num_batches_tracked == 1


def test_channels_last() -> None:
    model = tiny().double().eval()
    x = picture((33, 50), dtype=torch.float64)
    want = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want)


def test_compiles() -> None:
    model = tiny().double().eval()
    x = picture((33, 50), dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_exports() -> None:
    model, x = tiny().eval(), picture((33, 50))
    with torch.no_grad():
        assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_autocast() -> None:
    """In bfloat16, forward and backward; the mask follows the features."""
    model, x = tiny(), picture((32, 48)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_saves_its_options(tmp_path: Any) -> None:
    model = tiny(fusion=("glf", "lf", "static"), context="mp").eval()
    save_checkpoint(model, tmp_path / "weights.safetensors")
    loaded = model_from_checkpoint(tmp_path / "weights.safetensors").eval()
    x = picture((16, 32))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_ablations_were_not_published() -> None:
    with pytest.raises(CheckpointError, match="does not fit TMFNetBaseline"):
        load_checkpoint(tiny(name="tmfnet_baseline"), split_columns(published_key_map(tiny()) or {}, tiny().state_dict()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "psp"}, "context must be one of 'tmp', 'mp', 'tp', 'ppm', 'aspp', got 'psp'"),
        ({"fusion": "sum"}, "fusion must be one of 'glf', 'lf', 'static', 'carafe', got 'sum'"),
        ({"fusion": ("glf", "lf")}, r"fusion must be one kind or 3, got \('glf', 'lf'\)"),
        ({"fusion": 3}, "fusion must be one kind or 3, got 3"),
        ({"global_source": "b"}, "global_source must be one of 'tmp', 'high', 'c5', 'none', got 'b'"),
        ({"group_order": "mixed"}, "group_order must be one of 'blocked', 'interleaved', got 'mixed'"),
        ({"width": 0.3}, "width must be a multiple of 1/8, got 0.3"),
        ({"width": 0}, "width must be a multiple of 1/8, got 0"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"tmfnet: {message}"):
        create_model("tmfnet", **options)
