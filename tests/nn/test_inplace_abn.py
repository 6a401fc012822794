# SPDX-License-Identifier: Apache-2.0
"""In-place activated batch norm against the published one, against PyTorch's batch norm, and across processes."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.run import CpuClock, Side
from pyindexnet import use_backend
from pyindexnet.nn import InPlaceABN, convert_inplace_abn, revert_inplace_abn
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.testing import tolerance
from pyindexnet.testing.parity import error
from tests.golden import GoldenCase, load_case
from tests.nn.golden_module import check

SLOPES = (0.01, 1.0)
GOLDENS = ("inplace_abn_positiveweight", "inplace_abn_negativeweight")


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    case = load_case("a2u_module", name)

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for mode in ("eval", "train"):
            module = golden_module(case, dtype).train(mode == "train")
            x = case.tensor("input_x").to(dtype).requires_grad_()
            y = module(x.clone())
            grads = torch.autograd.grad(y, [x, module.weight, module.bias], case.tensor("cotangent").to(dtype))
            found[f"output_{mode}"] = y
            found |= dict(zip((f"grad_{mode}_{leaf}" for leaf in ("x", "weight", "bias")), grads, strict=True))
        return found | {f"output_train_{name}": getattr(module, name) for name in ("running_mean", "running_var")}

    check(case, results)


def golden_module(case: GoldenCase, dtype: torch.dtype) -> InPlaceABN:
    """The module of the case. Its weights were stored after its training step, whose statistics are taken off again."""
    module = InPlaceABN(6, weight_form="positive")
    module.load_state_dict(case.tensors("weight"))
    module = module.to(dtype)
    var, mean = torch.var_mean(case.tensor("input_x").to(dtype), (0, 2, 3))
    for running, batch in ((module.running_mean, mean), (module.running_var, var)):
        running.copy_((running - 0.1 * batch) / 0.9)
    return module


def pair(slope: float, momentum: float | None = 0.1) -> tuple[nn.Sequential, nn.Sequential]:
    """The same layers: convolution, norm, activation, convolution, plainly and in place."""
    torch.manual_seed(0)
    act = nn.Identity if slope == 1 else lambda: nn.LeakyReLU(slope)
    plain = nn.Sequential(ConvBNAct(3, 4, 3, activation=act), nn.Conv2d(4, 2, 3)).double()
    bn = plain[0].bn
    bn.momentum = momentum
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([0.5, -1.5, 2.0, -0.7]))
        bn.bias.normal_()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2.0)
    return plain, convert_inplace_abn(copy.deepcopy(plain))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_is_batch_norm(training: bool, slope: float, momentum: float | None, memory_format: torch.memory_format) -> None:
    plain, inplace = pair(slope, momentum)
    assert isinstance(inplace[0].bn, InPlaceABN)
    x = torch.randn(2, 3, 8, 6, dtype=torch.double).to(memory_format=memory_format)
    seen = []
    for model in (plain, inplace):
        model.train(training).to(memory_format=memory_format)
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = model(given)
        grads = torch.autograd.grad(y.square().sum(), [given, *model.parameters()])
        seen.append([y, *grads, *model.buffers()])
    torch.testing.assert_close(seen[1], seen[0])
    assert inplace.state_dict().keys() == plain.state_dict().keys()


def test_overwrites_its_input() -> None:
    x = torch.randn(2, 3, 4, 5)
    kept, module = x.clone(), InPlaceABN(3).eval()
    y = module(x)
    assert y.data_ptr() == x.data_ptr()
    assert not torch.equal(x, kept)


def test_view_is_copied() -> None:
    whole = torch.randn(2, 6, 4, 5)
    kept = whole.clone()
    InPlaceABN(3)(whole[:, :3])
    assert torch.equal(whole, kept)


def test_layer_that_needs_its_output() -> None:
    """What would be a wrong gradient is an error."""
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y = InPlaceABN(3)(x.sigmoid())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("weight_form", ["raw", "positive"])
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_derivatives(training: bool, slope: float, weight_form: str) -> None:
    """First and second, of input, weight and bias."""
    torch.manual_seed(1)
    module = InPlaceABN(2, negative_slope=slope, weight_form=weight_form).double().train(training)
    x = torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True)
    weight = torch.tensor([0.8, -1.3], dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(module, {"weight": weight, "bias": bias}, (x.clone(),))

    torch.autograd.gradcheck(run, (x, weight, bias))
    torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("weight_form", ["raw", "positive"])
@pytest.mark.parametrize("half_parameters", [False, True], ids=["float_parameters", "half_parameters"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, half_parameters: bool, weight_form: str, training: bool) -> None:
    """Half maps, with float32 parameters as under autocast or all half; the recovered map is as exact as the output."""
    torch.manual_seed(0)
    module = InPlaceABN(4, weight_form=weight_form).train(training)
    if half_parameters:
        module.to(dtype)
    exact = copy.deepcopy(module).float()
    x = torch.randn(2, 4, 8, 8).to(dtype)
    grads = []
    for net, given in ((module, x.clone().requires_grad_()), (exact, x.float().requires_grad_())):
        y = net(given * 1)
        grads.append((y, *torch.autograd.grad(y.float().square().sum(), [given, net.weight, net.bias])))
    assert grads[0][0].dtype == dtype
    for got, want in zip(*grads, strict=True):
        noise = torch.finfo(dtype).eps * want.abs().max() * (1 if got.shape == x.shape else want.numel())
        assert (got.float() - want).abs().max() <= 10 * noise
    for got, want in zip(grads[0][2:], (module.weight, module.bias), strict=True):
        assert got.dtype == want.dtype


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compiles(training: bool) -> None:
    _, model = pair(0.01)
    model.train(training)
    x = torch.randn(2, 3, 8, 6, dtype=torch.double)
    seen = []
    for net in (model, torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")):
        y = net(x)
        seen.append([y, *torch.autograd.grad(y.square().sum(), list(net.parameters())), *net.buffers()])
    torch.testing.assert_close(seen[1], seen[0])


def test_exports() -> None:
    _, model = pair(0.01)
    x = torch.randn(2, 3, 8, 6, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model.eval(), (x,)).module()(x), model(x))


def test_memory_of_a_training_step() -> None:
    """One map is kept for each unit, where batch norm and Leaky ReLU as modules keep three."""
    maps, size = 6, 2 * 8 * 32 * 32 * 4
    plain = nn.Sequential(*(ConvBNAct(8, 8, 3, activation=nn.LeakyReLU) for _ in range(maps)))
    peaks = []
    for model in (plain, convert_inplace_abn(copy.deepcopy(plain))):
        side = Side("step", lambda _, model=model: model(torch.ones(2, 8, 32, 32)).sum().backward())
        with use_backend("reference"):
            peaks.append(CpuClock().peak_bytes(side))
    assert peaks[0] - peaks[1] >= (2 * maps - 3) * size  # a few are needed to compute, once


def synchronised(rank: int, folder: str, sizes: list[int]) -> None:
    """One process: its part of the batch through the module, what it finds into a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(sizes))
    given = torch.load(f"{folder}/given.pt", weights_only=True)
    found: dict[str, Tensor] = {}
    for mode in ("train", "eval"):
        module = InPlaceABN(3, sync=True).train(mode == "train")
        module.load_state_dict(given["state"])
        x = given["x"].split(sizes)[rank].clone().requires_grad_()
        y = module(x * 1)
        grads = torch.autograd.grad(y, [x, module.weight, module.bias], given["cotangent"].split(sizes)[rank])
        found |= {f"{mode}/{i}": t.detach() for i, t in enumerate((y, *grads, *module.buffers()))}
    try:
        twice(InPlaceABN(3, sync=True))
    except NotImplementedError as error:
        found["error"] = torch.tensor(list(str(error).encode()))
    torch.save(found, f"{folder}/found{rank}.pt")
    dist.destroy_process_group()


def twice(module: InPlaceABN) -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    torch.autograd.grad(module(x * 1).square().sum(), x, create_graph=True)


@pytest.mark.parametrize("sizes", [[3, 1], [4, 0]], ids=str)
def test_synchronised(tmp_path: Path, sizes: list[int]) -> None:
    """Two processes with parts of a batch do what one does with all of it."""
    torch.manual_seed(0)
    module = InPlaceABN(3)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    x, cotangent = torch.randn(2, 4, 3, 5, 7).mul(3).add(1)
    torch.save({"state": module.state_dict(), "x": x, "cotangent": cotangent}, tmp_path / "given.pt")
    mp.spawn(synchronised, (str(tmp_path), sizes), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in range(len(sizes))]
    for mode in ("train", "eval"):
        whole = copy.deepcopy(module).train(mode == "train")
        given = x.clone().requires_grad_()
        y = whole(given * 1)
        grads = torch.autograd.grad(y, [given, whole.weight, whole.bias], cotangent)
        for i, want in enumerate((y, *grads, *whole.buffers())):
            found = [part[f"{mode}/{i}"] for part in parts]
            if i < 2:  # maps
                torch.testing.assert_close(torch.cat(found), want, msg=f"{mode}/{i}")
            elif i < 4:  # gradients of parameters, which DistributedDataParallel adds up
                torch.testing.assert_close(found[0] + found[1], want, msg=f"{mode}/{i}")
            else:
                torch.testing.assert_close(found, [want, want], msg=f"{mode}/{i}")
    for part in parts:
        assert bytes(part["error"].tolist()).decode() == (
            "InPlaceABN: sync must be False for derivatives of the backward pass, got True"
        )


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"InPlaceABN: x must hold more than one value per channel in training, got \(0, 3, 4, 4\)"
    ):
        InPlaceABN(3)(torch.zeros(0, 3, 4, 4))


def test_sync_alone_has_no_effect() -> None:
    """Without a process group it is the plain module, twice differentiable."""
    twice(InPlaceABN(3, sync=True))


def test_other_activations_stay() -> None:
    model = convert_inplace_abn(nn.Sequential(ConvBNAct(2, 3, 1), ConvBNAct(3, 3, 1, activation=None)))
    assert isinstance(model[0].bn, nn.BatchNorm2d)
    assert isinstance(model[1].bn, InPlaceABN)
    assert model[1].bn.negative_slope == 1


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(ConvBNAct(2, 3, 1, activation=None))
    model[0].bn.weight.requires_grad_(False)
    for convert in (convert_inplace_abn, revert_inplace_abn):
        convert(model)
        assert not model[0].bn.weight.requires_grad
        assert model[0].bn.bias.requires_grad


@pytest.mark.parametrize("weight_form", ["raw", "positive"])
@pytest.mark.parametrize("slope", SLOPES)
def test_revert(slope: float, weight_form: str) -> None:
    plain, _ = pair(slope)
    inplace = convert_inplace_abn(plain, weight_form=weight_form)
    reverted = revert_inplace_abn(copy.deepcopy(inplace))
    assert isinstance(reverted[0].bn, nn.BatchNorm2d)
    x = torch.randn(2, 3, 8, 6, dtype=torch.double)
    for training in (True, False):
        torch.testing.assert_close(reverted.train(training)(x), inplace.train(training)(x))
    assert reverted.state_dict().keys() == inplace.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"weight_form": "abs"}, None, "weight_form must be one of 'raw', 'positive', got 'abs'"),
        ({"channels": 0}, None, "channels must be a whole number from 1, got 0"),
        ({"negative_slope": 0.0}, None, "negative_slope must be a finite number above 0, got 0.0"),
        ({"negative_slope": None}, None, "negative_slope must be a finite number above 0, got None"),
        ({"eps": "x"}, None, "eps must be a finite number from 0, got 'x'"),
        ({"eps": -1e-5}, None, "eps must be a finite number from 0, got -1e-05"),
        ({"momentum": True}, None, "momentum must be a finite number, got True"),
        ({"momentum": float("nan")}, None, "momentum must be a finite number, got nan"),
        ({"sync": 1}, None, "sync must be one of False, True, got 1"),
        ({}, (2, 4, 5, 5), r"x must be \(N, 3, ...\), got \(2, 4, 5, 5\)"),
        ({}, (3,), r"x must be \(N, 3, ...\), got \(3,\)"),
        ({}, (1, 3, 1, 1), r"x must hold more than one value per channel in training, got \(1, 3, 1, 1\)"),
    ],
    ids=str,
)
def test_errors(options: dict, size: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"InPlaceABN: {message}"):
        InPlaceABN(**{"channels": 3, **options})(torch.zeros(size or (2, 3, 4, 4)))


def test_what_is_no_map() -> None:
    with pytest.raises(TypeError, match="InPlaceABN: x must be a tensor, got list"):
        InPlaceABN(3)([1.0])
    with pytest.raises(ValueError, match=r"InPlaceABN: x must be float64, .* or bfloat16, got torch.int64"):
        InPlaceABN(3)(torch.zeros(2, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_statistics_in_float32(dtype: torch.dtype) -> None:
    """A variance beyond float16's range; a mean that bfloat16 would round."""
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 4, 20, 20, generator=rng) * 400 + 100).to(dtype)
    module = InPlaceABN(4)
    y = module(x.clone())
    exact = F.leaky_relu(F.batch_norm(x.double(), None, None, training=True), module.negative_slope)
    assert error(y, exact) <= tolerance(exact, 0.0, x[:, 0].numel(), dtype)
    wanted = x.double().transpose(0, 1).flatten(1).var(1) * 0.1 + 0.9
    assert error(module.running_var, wanted) <= tolerance(wanted, 0.0, x[:, 0].numel(), torch.float32)
