# SPDX-License-Identifier: Apache-2.0
"""A2U Matting against the published network, the tables of its papers, and its options."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyindexnet.matting import predict_alpha
from pyindexnet.models import create_model, load_checkpoint, model_from_checkpoint, save_checkpoint
from pyindexnet.models.a2u_matting import UPSAMPLINGS, A2UMatting, BasicBlock
from pyindexnet.models.checkpoints import CheckpointError, published_key_map, split_columns
from pyindexnet.nn import AffinityUpDown, InPlaceABN, revert_inplace_abn
from pyindexnet.nn.affinity import VARIANTS
from pyindexnet.nn.resampling import Guide
from tests.golden import GoldenCase
from tests.models.golden_network import Part, check_gradients, check_output, check_probes, published
from tests.models.training import assert_trains
from tests.nn.test_affinity import kernel_maps, normalised
from tests.shared_data import shared_path

GROUP, CASE = "a2u_full", "a2u_adobe"
TINY = {"width": 0.125}
A2U: dict[str, Any] = {"downsample": False, "normalize": False}
BASELINE = 8_049_003
#: [Thesis] table 4.2, last column: options, parameters beyond the baseline, as printed
ROWS: dict[str, tuple[dict[str, Any], int, str]] = {
    "Nearest": ({"upsample": "nearest"}, 0, "8.05M"),
    "Bilinear": ({"upsample": "bilinear"}, 0, "8.05M"),
    "CARAFE": ({"upsample": "carafe"}, 263_824, "+0.26M"),
    "IndexNet": ({"upsample": "indexnet"}, 12_263_424, "+12.26M"),
    "static-pw-cw": (A2U | {"variant": "static", "shared": False, "position_wise": True}, 102_436, "+0.10M"),
    "static-cw": (A2U | {"variant": "static", "shared": False}, 25_744, "+26K"),
    "hybrid-cw": (A2U | {"variant": "hybrid", "shared": False}, 44_176, "+44K"),
    "hybrid-cs": (A2U | {"variant": "hybrid"}, 18_776, "+19K"),
    "dynamic-cw": (A2U | {"shared": False}, 199_824, "+0.20M"),
    "dynamic-cs": (A2U, 19_608, "+20K"),
    "dynamic-cs-d": ({"normalize": False}, 38_184, "+38K"),
    # prints +38K: the weights of the group norms are not counted
    "dynamic-cs-d, dagger": ({}, 38_184 + 2048, "+40K"),
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("row", ROWS)
def test_parameters_as_printed(row: str) -> None:
    options, beyond, printed = ROWS[row]
    with torch.device("meta"):
        parameters = count(create_model("a2u_matting", **options))
    assert parameters == BASELINE + beyond
    if printed.startswith("+"):
        assert printed == (f"+{beyond / 1e6:.2f}M" if printed.endswith("M") else f"+{beyond / 1e3:.0f}K")
    else:
        assert printed == f"{parameters / 1e6:.2f}M"


@pytest.mark.parametrize(("shared", "parameters"), [(True, 8_089_235), (False, 8_269_451)])
def test_parameters_of_the_published_networks(shared: bool, parameters: int) -> None:
    with torch.device("meta"):
        assert count(create_model("a2u_matting", shared=shared)) == parameters


@pytest.fixture(scope="module")
def network() -> tuple[GoldenCase, nn.Module]:
    """The published network."""
    return published(CASE, "a2u_matting", group=GROUP, encoder_kernel_size=6)


@pytest.mark.parametrize("which", ["a", "b"])
def test_output(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    check_output(*network, which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_output_with_batch_norm(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    """The same weights with ordinary batch norms, whose weight is not abs(w) + eps."""
    case, inplace = network
    model = create_model("a2u_matting", encoder_kernel_size=6, norm="batch_norm").eval()
    model.load_state_dict(inplace.state_dict())
    plain = GoldenCase(case.info, case.arrays | {f"output_{which}": case.arrays[f"output_plainbn_{which}"]})
    check_output(plain, model, which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_gradients(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    """Of the same function in batch norms and single activations, whose kinks the comparison can find."""
    case, model = network
    check_gradients(case, revert_inplace_abn(copy.deepcopy(model)), which)


@pytest.mark.parametrize("which", ["a", "b"])
def test_probes(network: tuple[GoldenCase, nn.Module], which: str) -> None:
    case, model = network
    pairs = [cast(AffinityUpDown, model.resampling[i]) for i in range(2)]

    def halved(x: Tensor) -> Tensor:
        return copy.deepcopy(pairs[0]).to(x.dtype).reduce(x, keep=False)[0]

    def maps_of(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return kernel_maps(copy.deepcopy(pairs[i]).to(x.dtype), x)

    def upsampling_map(i: int) -> Callable[[tuple[Tensor, Guide]], Tensor]:
        block = cast(BasicBlock, model.stages[i][0])
        return lambda out: normalised(cast(AffinityUpDown, block.resampling), out[1][0])[1]

    modules: dict[str, str | Part] = {
        "layer0": "stem",
        **{f"bilinear0#{j}": ("stem", lambda out, j=j: maps_of(0, out)[j]) for j in range(2)},
        **{f"bilinear1#{j}": ("stem", lambda out, j=j: maps_of(1, halved(out))[j]) for j in range(2)},
        "layer1": ("stages.0.2", first),
        "dconv_pp": "context",
        "pred.0": "head.0",
        "pred": "head",
    }
    for i in (1, 2):
        modules |= {
            f"layer{i + 1}_1#0": (f"stages.{i}.0", first),
            f"layer{i + 1}_1#1": (f"stages.{i}.0", upsampling_map(i)),
            f"layer{i + 1}_1#2": f"stages.{i}.0.conv1",
            f"layer{i + 1}_2": (f"stages.{i}.3", first),
        }
    for i in range(4):
        modules |= {f"short{i}": f"skips.{i}", f"decoder_layer{i + 1}": (f"decoder.{i}.1", first)}
    check_probes(case, model, which, modules)


def first(out: tuple[Tensor, Any]) -> Tensor:
    return out[0]


def test_published_keys() -> None:
    """Every published key is one of ours or a part of one."""
    model = create_model("a2u_matting")
    keys = json.loads(shared_path("golden", GROUP, f"{CASE}.keys.json").read_text())["state_dict"]
    ours = split_columns(published_key_map(model) or {}, model.state_dict())
    assert {key: list(t.shape) for key, t in ours.items()} == {key: shape for key, shape, _ in keys}


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"kernel_size": 1}, {"groups": 2}, {"kernel_size": 5}], ids=str)
def test_published_weights_tell_their_model(options: dict[str, Any]) -> None:
    """Loaded by its weights alone, a network computes what it did."""
    options = {"encoder_kernel_size": 6, "group_layout": "position_major"} | options
    model = tiny(**options).eval()
    state = split_columns(published_key_map(model) or {}, model.state_dict())
    loaded = model_from_checkpoint({"state_dict": {f"module.{key}": t for key, t in state.items()}}).eval()
    assert loaded.config["options"] == TINY | {"shared": True, "kernel_size": 3, "groups": 1} | options
    x = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("options", [{"upsample": "nearest"}, {"downsample": False}, {"variant": "hybrid"}], ids=str)
def test_ablations_were_not_published(options: dict[str, Any]) -> None:
    published_state = split_columns(published_key_map(tiny()) or {}, tiny().state_dict())
    with pytest.raises(CheckpointError, match="does not fit A2UMatting"):
        load_checkpoint(tiny(**options), published_state)


def tiny(seed: int = 0, **options: Any) -> A2UMatting:
    torch.manual_seed(seed)
    return create_model("a2u_matting", **TINY, **options)


@pytest.mark.parametrize("size", [(1, 1), (33, 50)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        *({"upsample": kind} for kind in UPSAMPLINGS),
        *({"variant": variant, "shared": False} for variant in VARIANTS),
        *({"variant": variant, "downsample": False, "position_wise": True} for variant in VARIANTS),
        {"rank": 2, "normalize": False, "norm": "batch_norm"},
        {"groups": 2, "group_layout": "position_major"},
        {"kernel_size": 1, "encoder_kernel_size": 4},
    ],
    ids=str,
)
def test_sizes(options: dict[str, Any], size: tuple[int, int]) -> None:
    """Any size, forward and backward; every parameter gets a gradient."""
    model = tiny(**options).eval()
    x = torch.randn(2, 4, *size, requires_grad=True)
    assert_trains(model, x)


def test_no_images() -> None:
    assert tiny().eval()(torch.zeros(0, 4, 32, 32)).shape == (0, 1, 32, 32)


def test_samples_have_their_own_kernels() -> None:
    """A batch gives what its samples give alone."""
    model = tiny().double().eval()
    x = torch.randn(3, 4, 32, 48, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(sample) for sample in x.split(1)]))


def test_norms_train_alike() -> None:
    """In place, with gamma = abs(w) + eps, a training step has the gradients of batch norms with that weight."""
    inplace, plain = tiny().double(), tiny(norm="batch_norm").double()
    with torch.no_grad():
        for module in inplace.modules():
            if isinstance(module, InPlaceABN):
                module.weight.uniform_(-1.5, 1.5)
        plain.load_state_dict(inplace.state_dict())
        for name, module in inplace.named_modules():
            if isinstance(module, InPlaceABN):
                plain.get_submodule(name).weight.copy_(module.gamma())
    x = torch.randn(2, 4, 33, 33, dtype=torch.double)
    seen = []
    for model in (inplace, plain):
        given = x.clone().requires_grad_()
        torch.manual_seed(0)  # of the dropout
        grads = torch.autograd.grad(model(given).square().sum(), [given, *model.parameters()])
        named = zip(model.named_parameters(), grads[1:], strict=True)
        seen.append([grads[0], *(grad for (name, _), grad in named if ".bn.weight" not in name), *model.buffers()])
    torch.testing.assert_close(seen[1], seen[0])


def test_channels_last() -> None:
    model = tiny().double().eval()
    x = torch.randn(2, 4, 33, 50, dtype=torch.double)
    with torch.no_grad():
        want = model(x)
        got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want)


def test_compiles() -> None:
    model = tiny().double().eval()
    x = torch.randn(2, 4, 33, 50, dtype=torch.double)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_exports() -> None:
    model, x = tiny().eval(), torch.randn(2, 4, 33, 50)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_autocast() -> None:
    """In bfloat16, forward and backward."""
    model, x = tiny(), torch.randn(2, 4, 32, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_all_of_it_in_bfloat16(upsample: str) -> None:
    """A training step with parameters, buffers and input of the half type."""
    model = tiny(upsample=upsample).to(torch.bfloat16)
    x = torch.randn(2, 4, 32, 48, dtype=torch.bfloat16, requires_grad=True)
    assert_trains(model, x)
    for name, t in [("x", x), *model.named_parameters()]:
        assert t.grad is not None, name
        assert t.grad.dtype == torch.bfloat16, name
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_saves_its_options(tmp_path: Any) -> None:
    model = tiny(variant="hybrid", shared=False, downsample=False, kernel_size=5, norm="batch_norm").eval()
    save_checkpoint(model, tmp_path / "weights.safetensors")
    loaded = model_from_checkpoint(tmp_path / "weights.safetensors").eval()
    x = torch.randn(1, 4, 16, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_matte_pads_by_reflection() -> None:
    model = tiny().eval()
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    trimap = np.full((37, 50), 128, np.uint8)
    trimap[:, :10] = 0
    trimap[:, 40:] = 255
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    assert predict_alpha(model, image, trimap).shape == (37, 50)
    assert seen == [(1, 4, 48, 64)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample": "deconv"}, "upsample must be one of 'a2u', 'nearest', 'bilinear', 'carafe', 'indexnet', got 'deconv'"),
        ({"variant": "fixed"}, "variant must be one of 'static', 'hybrid', 'dynamic', got 'fixed'"),
        ({"norm": "group"}, "norm must be one of 'inplace_abn', 'batch_norm', got 'group'"),
        ({"shared": 2}, "shared must be one of False, True, got 2"),
        ({"shared": 1}, "shared must be one of False, True, got 1"),
        ({"width": 0.01}, "width must be a multiple of 1/32, got 0.01"),
        ({"width": 0}, "width must be a multiple of 1/32, got 0"),
        ({"width": 0.125, "groups": 3}, r"groups must divide the channels of the maps \(8, 8, 16, 32\), got 3"),
        ({"width": 0.125, "groups": 0}, r"groups must divide the channels of the maps \(8, 8, 16, 32\), got 0"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"a2u_matting: {message}"):
        create_model("a2u_matting", **options)


@pytest.mark.parametrize("options", [{"kernel_size": 3.0}, {"encoder_kernel_size": 5.0}], ids=str)
def test_bad_options_of_its_modules(options: dict) -> None:
    ((option, value),) = options.items()
    with pytest.raises(ValueError, match=rf"AffinityUpDown: {option} must be one of 1, .*, got {value}"):
        create_model("a2u_matting", **options)
