# SPDX-License-Identifier: Apache-2.0
"""Index networks against the published blocks, and what the golden arrays do not show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.checkpoints import merge_columns, split_columns
from pyindexnet.models.indexnet_matting import index_network_key_map
from pyindexnet.nn import DepthwiseIndexNetwork, HolisticIndexNetwork, HolisticMaxIndex
from pyindexnet.nn.index_networks import DEPTHWISE_FAMILIES
from pyindexnet.ops import indexed_pool, indexed_pool_skip, indexed_upsample
from tests.golden import GoldenCase, load_case

CASES = [
    f"{family}_{'nonlinear' if nonlinear else 'linear'}_{'context' if context else 'nocontext'}"
    for family in ("hin", "o2o", "m2o")
    for nonlinear in (False, True)
    for context in (False, True)
]
TRAIN_CASE = "m2o_nonlinear_context_trainbn"


def network_of(name: str, case: GoldenCase, weights: str = "weight") -> nn.Module:
    """The network of a case with its weights, in the case's mode."""
    family, layers, kernel = name.split("_")[:3]
    options = {"nonlinear": layers == "nonlinear", "context": kernel == "context"}
    channels = case.info["constructor"]["inp"]
    if family == "hin":
        net: nn.Module = HolisticIndexNetwork(channels, **options)
    else:
        net = DepthwiseIndexNetwork(channels, family, width=1, **options)
    state = {f"golden.{key}": t for key, t in case.tensors(weights).items()}
    merged = merge_columns(index_network_key_map("net", "golden", net), state)
    net.load_state_dict({key.removeprefix("net."): t for key, t in merged.items()})
    return net.train(case.info["mode"] == "train")


def parameter_gradients(net: nn.Module, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Gradients of the parameters by the published keys."""
    by_key = {f"net.{key}": g for (key, _), g in zip(net.named_parameters(), grads, strict=True)}
    published = split_columns(index_network_key_map("net", "golden", net), by_key)
    return {key.removeprefix("golden."): t for key, t in published.items()}


def results(name: str, case: GoldenCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything a case stores, computed by our network and operators, under the names of its arrays."""
    net = network_of(name, case, "weight_before" if name == TRAIN_CASE else "weight").to(dtype)
    given = {key: case.tensor(key).to(dtype) for key in case.arrays if key.startswith(("input", "cotangent"))}
    x, decoder = given["input_x"].requires_grad_(), given["input_decoder"].requires_grad_()
    logits = net(x)
    maps = logits.shape[1]
    # the index maps themselves: the operators applied to ones
    _, idx_en = indexed_pool_skip(torch.ones_like(x[:, :maps]), logits)
    idx_de = indexed_upsample(torch.ones_like(decoder[:, :maps]), logits)
    pooled, indexed = indexed_pool_skip(x, logits)
    upsampled = indexed_upsample(decoder, logits)
    out = {
        "output_logits": logits.squeeze(1) if name.startswith("hin") else logits,
        "output_idx_en": idx_en,
        "output_idx_de": idx_de,
        "output_indexed": indexed,
        "output_pooled": pooled,
        "output_upsampled": upsampled,
    }
    block = (idx_en * given["cotangent_idx_en"]).sum() + (idx_de * given["cotangent_idx_de"]).sum()
    operators = (pooled * given["cotangent_pooled"]).sum() + (upsampled * given["cotangent_upsampled"]).sum()
    parameters = list(net.parameters())
    for prefix, loss, inputs in (
        ("grad_block", block, {"input_x": x}),
        ("grad_all", block + operators, {"input_x": x, "input_decoder": decoder}),
    ):
        grads = torch.autograd.grad(loss, [*inputs.values(), *parameters], retain_graph=True)
        out |= {f"{prefix}_{key}": g for key, g in zip(inputs, grads, strict=False)}
        weights = parameter_gradients(net, grads[len(inputs) :])
        out |= {f"{prefix}_weight/{key}": g for key, g in weights.items()}

    # the operators alone, on the index maps as given
    leaves = {
        "x": given["input_x"].detach().requires_grad_(),
        "decoder": given["input_decoder"].detach().requires_grad_(),
        "idx_en": idx_en.detach().requires_grad_(),
        "idx_de": idx_de.detach().requires_grad_(),
    }
    pooled = indexed_pool(leaves["x"], positions(leaves["idx_en"]), normalization="none")
    upsampled = indexed_upsample(leaves["decoder"], positions(leaves["idx_de"]), normalization="none")
    operators = (pooled * given["cotangent_pooled"]).sum() + (upsampled * given["cotangent_upsampled"]).sum()
    grads = torch.autograd.grad(operators, list(leaves.values()))
    out |= {f"grad_op_{key}": g for key, g in zip(leaves, grads, strict=True)}
    return {key: t.detach() for key, t in out.items()}


def positions(index: Tensor) -> Tensor:
    """(N, C, H, W) index map as (N, C, 4, h, w)."""
    return F.pixel_unshuffle(index, 2).unflatten(1, (-1, 4))


@pytest.mark.parametrize("name", [*CASES, TRAIN_CASE])
def test_golden(name: str) -> None:
    """Outputs and all gradients agree with the published block.

    These cases store no noise floor: it is ten times the distance of our own float32 run from our float64 run. The running
    statistics of the training case are not compared: its arrays hold only those after the step. The full network's are.
    """
    case = load_case("index_blocks", name)
    rounded, exact = results(name, case, torch.float32), results(name, case, torch.float64)
    stored = {key for key in case.arrays if key.startswith(("output", "grad"))}
    assert exact.keys() >= stored
    for key in stored:
        golden = case.tensor(key).double()
        assert exact[key].shape == golden.shape, key
        noise = (rounded[key] - exact[key]).abs().max()
        floor = torch.finfo(torch.float32).eps * golden.abs().max()
        assert (exact[key] - golden).abs().max() <= 10 * (noise + floor), key


def columns_of(net: DepthwiseIndexNetwork, x: Tensor) -> Tensor:
    """The four columns as the papers draw them: four separate stacks of layers."""
    groups = 1 if net.position_major else net.channels
    maps = []
    for k in range(4):
        y = x
        if net.hidden is not None:
            conv, bn = net.hidden.conv, net.hidden.bn
            y = F.conv2d(y, net.split(conv.weight)[k], stride=2, padding=conv.padding, groups=groups)
            statistics = [net.split(t)[k] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)]
            y = F.batch_norm(y, *statistics, training=net.training, momentum=0)
            y = F.conv2d(F.relu6(y), net.split(net.predict.weight)[k], groups=groups)
        else:
            y = F.conv2d(y, net.split(net.predict.weight)[k], stride=2, padding=net.predict.padding, groups=groups)
        maps.append(y)
    return torch.stack(maps, 2)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("context", [False, True], ids=["2x2", "4x4"])
@pytest.mark.parametrize("nonlinear", [False, True], ids=["linear", "nonlinear"])
@pytest.mark.parametrize("family", DEPTHWISE_FAMILIES)
def test_merged_columns_are_four_columns(family: str, nonlinear: bool, context: bool, width: int) -> None:
    torch.manual_seed(0)
    net = DepthwiseIndexNetwork(6, family, nonlinear=nonlinear, context=context, width=width).double()
    for p in net.parameters():
        nn.init.normal_(p)
    x = torch.randn(3, 6, 8, 10, dtype=torch.float64, requires_grad=True)
    got = net(x)
    if net.shared:  # one channel is one image of one channel
        want = columns_of(net, x.reshape(18, 1, 8, 10)).reshape(got.shape)
    else:
        want = columns_of(net, x)
    torch.testing.assert_close(got, want)
    cotangent = torch.randn_like(got)
    wrt = [x, *net.parameters()]
    for a, b in zip(torch.autograd.grad(got, wrt, cotangent), torch.autograd.grad(want, wrt, cotangent), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", DEPTHWISE_FAMILIES)
def test_evaluation_uses_running_statistics(family: str) -> None:
    torch.manual_seed(0)
    net = DepthwiseIndexNetwork(4, family).double()
    bn = net.hidden.bn
    for tensor in (bn.running_mean, bn.running_var, bn.weight.data, bn.bias.data):
        tensor.uniform_(0.5, 2)
    net.eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    slices = x.reshape(8, 1, 6, 6) if net.shared else x
    torch.testing.assert_close(net(x), columns_of(net, slices).reshape(2, 4, 4, 3, 3))


@pytest.mark.parametrize("family", DEPTHWISE_FAMILIES)
def test_split_inverts_merge(family: str) -> None:
    net = DepthwiseIndexNetwork(5, family)
    columns = [torch.randn(2 * net.channels, 3) for _ in range(4)]
    for got, want in zip(net.split(net.merge(columns)), columns, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 9), (32, 33)], ids=str)
@pytest.mark.parametrize("context", [False, True], ids=["2x2", "4x4"])
@pytest.mark.parametrize("family", ["hin", *DEPTHWISE_FAMILIES])
def test_any_size_and_layout(family: str, context: bool, size: tuple[int, int], layout: torch.memory_format) -> None:
    """ceil sizes; a pixel outside the image counts as zero; the layout of the input changes nothing."""
    torch.manual_seed(0)
    make = HolisticIndexNetwork if family == "hin" else lambda c, **kw: DepthwiseIndexNetwork(c, family, **kw)
    net = make(3, context=context).double().eval()
    h, w = size
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    got = net(x.contiguous(memory_format=layout))
    assert got.shape == (2, 1 if family == "hin" else 3, 4, -(-h // 2), -(-w // 2))
    even = F.pad(x, (0, w % 2, 0, h % 2))
    torch.testing.assert_close(got, net(even))


def test_channels_last_is_kept() -> None:
    """The merged output stays in the layout of the features: a dense transposed view, no copy into order."""
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    for family in DEPTHWISE_FAMILIES:
        net = DepthwiseIndexNetwork(8, family).to(memory_format=torch.channels_last).eval()
        logits = net(x)
        channel_strides = (logits.stride(1), logits.stride(2))
        assert 1 in channel_strides, family
        assert logits.stride(4) == 32, family


def test_holistic_max_index() -> None:
    x = torch.randn(2, 5, 7, 6)
    index = HolisticMaxIndex()(x)
    assert index.shape == (2, 1, 4, 4, 3)
    assert torch.equal(index.sum(2), torch.ones(2, 1, 4, 3))
    squeezed = x.amax(1, keepdim=True)
    # the value it selects from the squeezed map is that map's maximum, also where the last row is half a cell
    selected = indexed_pool(squeezed, index, normalization="none")
    assert torch.equal(selected, F.max_pool2d(squeezed, 2, ceil_mode=True))


def test_holistic_max_index_of_equal_values_is_the_first() -> None:
    index = HolisticMaxIndex()(torch.zeros(1, 2, 4, 4))
    assert torch.equal(index[:, :, 0], torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "m2m"}, r"family must be one of 'o2o_modelwise', .*, got 'm2m'"),
        ({"width": 3}, r"width must be one of 1, 2, got 3"),
        ({"channels": 0}, r"channels must be a whole number from 1, got 0"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthwiseIndexNetwork(**{"channels": 4, **options})
