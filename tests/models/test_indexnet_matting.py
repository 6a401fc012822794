# SPDX-License-Identifier: Apache-2.0
"""IndexNet Matting against the published networks, and its options."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyindexnet.backends import use_backend
from pyindexnet.models import IndexNetMatting, create_model, load_checkpoint
from pyindexnet.models.checkpoints import KeyMap, published_key_map, split_columns
from pyindexnet.models.indexnet_matting import (
    DECODERS,
    INDEX_NETWORKS,
    NORMALIZATIONS,
    published_options,
)
from pyindexnet.nn import IndexedResampling
from pyindexnet.ops import indexed_pool_skip, indexed_upsample
from tests.golden import GoldenCase, load_case, published_state_dict
from tests.kinks import gradients_near
from tests.shared_data import shared_path

GROUP = "indexnet_full"
CASES = [
    "indexnet_m2o_nonlinear_context_os32",
    "indexnet_m2o_nonlinear_context_os16",
    "indexnet_m2o_nonlinear_context_os32_depsep",
    "indexnet_hin_nonlinear_context_os32",
    "indexnet_o2o_linear_nocontext_os32",
    "unet_maxunpool_os32_aspp",
]
CONFIGS = [
    *(
        f"indexnet_{family}_{layers}_{kernel}_os{stride}_aspp"
        for family in ("hin", "o2o", "m2o")
        for layers in ("linear", "nonlinear")
        for kernel in ("nocontext", "context")
        for stride in (32, 16)
    ),
    *(f"unet_maxunpool_os{stride}_{context}" for stride in (32, 16, 8) for context in ("noaspp", "aspp")),
    "unet_maxunpool_os32_aspp_w1.4",
    "indexnet_m2o_nonlinear_context_os32_noaspp",
    "indexnet_m2o_nonlinear_context_os32_aspp_depsep",
]
B11 = 3_753_259


def options_of(constructor: dict[str, Any]) -> dict[str, Any]:
    """Our options for the arguments of the published constructor."""
    options = {
        "output_stride": constructor["output_stride"],
        "aspp": constructor["apply_aspp"],
        "decoder_conv": {"std_conv": "std", "dep_sep_conv": "depsep"}[constructor["conv_operator"]],
        "decoder_kernel_size": constructor["decoder_kernel_size"],
        "width": constructor.get("width_mult", 1.0),
    }
    if constructor["decoder"] == "unet_style":
        return {**options, "index_network": "max"}
    return {
        **options,
        "index_network": "hin" if constructor["indexnet"] == "holistic" else constructor["index_mode"],
        "nonlinear": constructor["use_nonlinear"],
        "context": constructor["use_context"],
        "index_width": 1,
    }


def published(name: str) -> tuple[GoldenCase, IndexNetMatting]:
    """A case and our network with its weights, in evaluation mode."""
    case = load_case(GROUP, name)
    model = create_model("indexnet_matting", **options_of(case.info["constructor"]))
    load_checkpoint(model, published_state_dict(GROUP, name))
    return case, model.eval()


def key_map(model: nn.Module) -> KeyMap:
    keys = published_key_map(model)
    assert keys is not None
    return keys


def by_published_key(model: nn.Module, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Parameter gradients by the published keys; those of merged columns split."""
    names = [name for name, _ in model.named_parameters()]
    return split_columns(key_map(model), dict(zip(names, grads, strict=True)))


def assert_norms(grads: dict[str, Tensor], norms: dict[str, float], tolerance: float) -> None:
    """Relative to each norm; one that is zero but for rounding (a bias before a batch norm) has the largest one's rounding."""
    assert grads.keys() == norms.keys()
    floor = torch.finfo(torch.float32).eps * max(norms.values())
    for key, norm in norms.items():
        assert abs(grads[key].norm().item() - norm) <= tolerance * norm + floor, key


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("name", CASES)
def test_output(name: str, which: str) -> None:
    case, model = published(name)
    with torch.no_grad():
        error = (model(case.tensor(f"input_{which}")) - case.tensor(f"output_{which}")).abs().max()
    assert error <= case.tolerance(which)


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, which: str) -> None:
    """Of the input, and for case a the norm of every parameter's."""
    case, model = published(name)

    def run(net: nn.Module) -> tuple[Tensor, Tensor, list[Tensor]]:
        dtype = next(net.parameters()).dtype
        x = case.tensor(f"input_{which}").to(dtype).requires_grad_()
        parameters = list(net.parameters()) if which == "a" else []
        return net(x), case.tensor(f"cotangent_{which}").to(dtype), [x, *parameters]

    golden = case.tensor(f"grad_input_{which}")
    tolerance = case.relative_tolerance(which)
    grads = gradients_near(model, run, golden, tolerance * golden.std().item())
    assert (grads[0] - golden).abs().max() <= tolerance * golden.std()
    if which == "a":
        assert_norms(by_published_key(model, grads[1:]), case.info["param_grad_l2"], tolerance)


def stage_outputs(model: IndexNetMatting, x: Tensor) -> dict[str, Tensor]:
    """Output of every stage and the normalised index maps, under the names of the published modules."""
    seen: dict[str, Tensor] = {}

    def keep(key: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, args, out: seen.__setitem__(key, out))

    for i, stage in enumerate(model.encoder.stages):
        keep(f"layer{i}", stage)
    for i, stage in enumerate(model.decoder):
        keep(f"decoder_layer{i}", stage)
    for key, module in (("dconv_pp", model.context), ("pred.0", model.head.reduce), ("pred", model.head)):
        keep(key, module)
    for i, pair in model.resampling.items():
        if isinstance(pair, IndexedResampling):
            keep(f"index{i}", pair.network)
    with torch.no_grad():
        model(x)
        for i, pair in model.resampling.items():
            if isinstance(pair, IndexedResampling):
                logits = seen.pop(f"index{i}")
                ones = x.new_ones(1, logits.shape[1], *(2 * n for n in logits.shape[3:]))
                seen[f"index{i}#0"] = indexed_pool_skip(ones, logits)[1]
                seen[f"index{i}#1"] = indexed_upsample(ones[:, :, ::2, ::2], logits)
            else:
                seen[f"pool{i}#0"] = pair.reduce(seen[f"layer{i}"], keep=False)[0]
    return seen


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("name", CASES)
def test_probes(name: str, which: str) -> None:
    """Samples of what every stage puts out.

    The inside of a network has no stored noise floor: it is ten times the distance of our own float32 run from our float64 run.
    """
    case, model = published(name)
    x = case.tensor(f"input_{which}")
    rounded = stage_outputs(copy.deepcopy(model), x)
    exact = stage_outputs(model.double(), x.double())
    probes = case.tensors(f"probe{which}")
    assert probes.keys() == exact.keys()
    for key, golden in probes.items():
        assert list(exact[key].shape) == case.info["probes"][which + key]["shape"]
        values = exact[key].flatten()[case.tensor(f"probe{which}_index/{key}").long()]
        noise = (rounded[key] - exact[key]).abs().max()
        assert (values - golden).abs().max() <= 10 * noise, key


def test_training_step() -> None:
    """Batch statistics, their running averages, and all gradients of one step in training mode."""
    case, model = published(CASES[0])
    model.train()
    model.context.dropout.eval()
    model_after = None

    def run(net: nn.Module) -> tuple[Tensor, Tensor, list[Tensor]]:
        nonlocal model_after
        dtype = next(net.parameters()).dtype
        x = case.tensor("train_input").to(dtype).requires_grad_()
        model_after = net
        return net(x), case.tensor("train_cotangent").to(dtype), [x, *net.parameters()]

    golden = case.tensor("train_output")
    # the case stores no noise floor of its own: the larger of the two of its evaluation outputs
    tolerance = max(case.relative_tolerance("a"), case.relative_tolerance("b"))
    with torch.no_grad():
        exact = run(copy.deepcopy(model).double())[0]
    assert (exact - golden).abs().max() <= tolerance * golden.std()

    grad_input = case.tensor("train_grad_input")
    grads = gradients_near(model, run, grad_input, tolerance * grad_input.std().item())
    assert (grads[0] - grad_input).abs().max() <= tolerance * grad_input.std()
    assert_norms(by_published_key(model, grads[1:]), case.info["train_param_grad_l2"], tolerance)

    after = split_columns(key_map(model), model_after.state_dict())
    updated = case.tensors("train_updated")
    assert updated.keys() == {key for key in after if key.endswith(("running_mean", "running_var"))}
    for key, want in updated.items():
        assert (after[key] - want).abs().max() <= tolerance * want.abs().max(), key


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configurations(name: str) -> None:
    """Parameters of every published configuration; its keys load; its options are read off its weights."""
    entry = json.loads(shared_path("golden", "keys", "indexnet_repo_all_configs.keys.json").read_text())[name]
    options = options_of(entry["constructor"])
    model = create_model("indexnet_matting", **options)
    assert sum(p.numel() for p in model.parameters()) == entry["n_parameters"]

    torch.manual_seed(0)
    state = {key: torch.rand(shape).to(getattr(torch, dtype)) for key, shape, dtype in entry["state_dict"]}
    load_checkpoint(model, state)
    loaded = split_columns(key_map(model), model.state_dict())
    assert loaded.keys() == state.keys()
    for key, want in state.items():
        assert torch.equal(loaded[key], want), key

    inferred = published_options(state)
    assert inferred is not None
    if options["index_network"] == "max":  # leaves no trace of its output stride
        inferred["output_stride"] = options["output_stride"]
    if not options.get("nonlinear", True):  # no hidden layer whose width could show
        inferred["index_width"] = 1
    defaults = {"index_width": 1} if options["index_network"] == "hin" else {}
    assert {**defaults, **inferred} == options


# [IndexNet] table 2, [Thesis] table 3.4: all trainable parameters, batch norm included, more than B11 has
DELTAS = [
    ("hin", False, False, 4_992, "4.99K"),
    ("hin", False, True, 19_968, "19.97K"),
    ("hin", True, False, 262_304, "0.26M"),
    ("hin", True, True, 1_037_984, "1.04M"),
    ("o2o_modelwise", False, False, 16, "16"),
    ("o2o_modelwise", True, False, 56, "56"),
    ("o2o_modelwise", True, True, 152, "152"),
    ("o2o_stagewise", False, False, 80, "80"),
    ("o2o_stagewise", True, False, 280, "280"),
    ("o2o_stagewise", True, True, 760, "760"),
    ("o2o", False, False, 4_992, "4.99K"),
    ("o2o", False, True, 19_968, "19.97K"),
    ("o2o", True, False, 17_472, "17.47K"),
    ("o2o", True, True, 47_424, "47.42K"),
    ("m2o", False, False, 517_120, "0.52M"),
    ("m2o", False, True, 2_068_480, "2.07M"),
    ("m2o", True, False, 1_297_792, "1.30M"),
    ("m2o", True, True, 4_400_512, "4.40M"),
]


@pytest.mark.parametrize(("family", "nonlinear", "context", "delta", "printed"), DELTAS)
def test_parameters_as_printed(family: str, nonlinear: bool, context: bool, delta: int, printed: str) -> None:
    with torch.device("meta"):
        model = create_model("indexnet_matting", index_network=family, nonlinear=nonlinear, context=context)
    assert sum(p.numel() for p in model.parameters()) == B11 + delta
    form = {"K": f"{delta / 1e3:.2f}K", "M": f"{delta / 1e6:.2f}M"}.get(printed[-1], str(delta))
    assert form == printed


@pytest.mark.parametrize("index_network", ["max", "hmi", "bilinear"])
def test_parameters_of_the_baselines(index_network: str) -> None:
    with torch.device("meta"):
        model = create_model("indexnet_matting", index_network=index_network)
    assert sum(p.numel() for p in model.parameters()) == B11


def test_parameters_of_carafe() -> None:
    """[Thesis] table 3.4, B11-carafe: a compressor and a predictor before each of the five upsamplings."""
    with torch.device("meta"):
        model = create_model("indexnet_matting", index_network="carafe")
    count = sum(p.numel() for p in model.parameters())
    assert count == B11 + 64 * (32 + 24 + 32 + 64 + 160) + 5 * 64 + 5 * (64 * 9 + 1) * 100
    assert f"{count / 1e6:.2f}M" == "4.06M"


def test_parameters_of_the_released_model() -> None:
    model = create_model("indexnet_matting", index_width=1)
    assert sum(p.numel() for p in model.parameters()) == 5_953_515


def tiny(**options: Any) -> IndexNetMatting:
    torch.manual_seed(0)
    return create_model("indexnet_matting", width=0.25, decoder_kernel_size=3, **options).eval()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_every_combination_trains(index_network: str, decoder: str) -> None:
    """In training mode every parameter gets a gradient."""
    model = tiny(index_network=index_network, decoder=decoder).train()
    x = torch.rand(2, 4, 64, 64)
    out = model(x)
    assert out.shape == (2, 1, 64, 64)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (95, 64)], ids=str)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_any_size(index_network: str, output_stride: int, size: tuple[int, int]) -> None:
    model = tiny(index_network=index_network, output_stride=output_stride)
    with torch.no_grad():
        out = model(torch.rand(1, 4, *size))
    assert out.shape == (1, 1, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("index_network", INDEX_NETWORKS)
def test_channels_last(index_network: str) -> None:
    model = tiny(index_network=index_network).double()
    x = torch.rand(2, 4, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        want = model(x)
        model.to(memory_format=torch.channels_last)
        layouts = []
        for stage in (*model.encoder.stages, *model.decoder):
            stage.register_forward_hook(
                lambda m, args, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
        got = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want)
    assert all(layouts), "a stage left channels_last"


@pytest.mark.parametrize("decoder", NORMALIZATIONS)
@pytest.mark.parametrize("encoder", NORMALIZATIONS)
def test_normalizations(encoder: str, decoder: str) -> None:
    """[Thesis] table 3.5 and all other pairs reach the operators."""
    model = tiny(encoder_normalization=encoder, decoder_normalization=decoder)
    pairs = list(model.resampling.values())
    assert {(p.encoder, p.decoder) for p in pairs} == {(encoder, decoder)}
    assert model(torch.rand(1, 4, 32, 32)).isfinite().all()


@pytest.mark.parametrize("decoder_conv", ["std", "depsep"])
@pytest.mark.parametrize("decoder_kernel_size", [3, 5])
def test_fresh_alpha_is_spread_about_one_half(decoder_conv: str, decoder_kernel_size: int) -> None:
    """And passes gradients on: from random signs the last kernel let training stay at alpha = 0."""
    torch.manual_seed(0)
    model = create_model("indexnet_matting", width=0.25, decoder_conv=decoder_conv, decoder_kernel_size=decoder_kernel_size)
    x = torch.randn(2, 4, 64, 64)
    reduced: list[Tensor] = []
    model.head.reduce.register_forward_hook(lambda module, args, output: reduced.append(output))
    y = model(x)
    assert torch.equal(y, reduced[0])
    assert 0.3 < y.median() < 0.7
    assert (y > 0).float().mean() > 0.6


def test_modelwise_network_is_one_module() -> None:
    model = tiny(index_network="o2o_modelwise")
    networks = [key for key in model.state_dict() if ".network." in key]
    assert len(networks) == len(set(networks)) == 7
    stages = tiny(index_network="o2o_stagewise")
    assert len([key for key in stages.state_dict() if ".network." in key]) == 5 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index_network": "din"}, r"index_network must be one of 'hin', .*, got 'din'"),
        ({"decoder": "fpn"}, r"decoder must be one of 'unet', 'skip', 'none', got 'fpn'"),
        ({"decoder_conv": "dense"}, r"decoder_conv must be one of 'std', 'depsep', got 'dense'"),
        ({"output_stride": 4}, r"output_stride must be one of 8, 16, 32, got 4"),
        ({"index_width": 0}, r"index_width must be one of 1, 2, got 0"),
        ({"nonlinear": "yes"}, r"nonlinear must be one of False, True, got 'yes'"),
        ({"encoder_normalization": "relu"}, r"encoder_normalization must be one of 'none', .*, got 'relu'"),
        ({"decoder_kernel_size": 4}, r"decoder_kernel_size must be an odd number from 1, got 4"),
        ({"width": 0}, r"width must be a number of at least 1/16, got 0"),
        ({"width": "1"}, r"width must be a number of at least 1/16, got '1'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("indexnet_matting", **options)


@pytest.mark.parametrize("index_network", ["m2o", "o2o_modelwise", "hin", "hmi"])
def test_compiles_as_one_graph(index_network: str) -> None:
    """Tracing only: the operators have their own tests under the default compiler."""
    torch._dynamo.reset()
    model = tiny(index_network=index_network)
    x = torch.rand(1, 4, 32, 64)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="eager")(x)
        assert torch.equal(got, model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """At most twice the error of the reference operators under the same autocast, and its rounding."""
    model = tiny()
    x = torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        gold = copy.deepcopy(model).double()(x.double())
        with torch.autocast("cpu", dtype=dtype):
            got = model(x)
            with use_backend("reference"):
                reference = model(x)
    assert got.dtype == reference.dtype == dtype
    floor = torch.finfo(dtype).eps * gold.abs().max()
    assert (got - gold).abs().max() <= 2 * (reference - gold).abs().max() + floor
