# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation as one function against the two modules, and where the two are called."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from pyindexnet import use_backend
from pyindexnet.nn.batch_norm import normalize_and_activate
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.ops.batch_norm import why_not
from pyindexnet.testing.parity import error, tolerance

ACTIVATIONS = {
    "relu6": nn.ReLU6,
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "linear": nn.Identity,
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
reason = why_not(torch.zeros(1, 1, 1, 1))
needs_kernel = pytest.mark.skipif(reason is not None, reason=str(reason))


def plainly(unit: ConvBNAct, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y = unit.bn(unit.conv(x))
    return unit.act(y if residual is None else y + residual)


def make_unit(activation: Callable[[], nn.Module], momentum: float | None = 0.1) -> ConvBNAct:
    torch.manual_seed(0)
    unit = ConvBNAct(3, 17, 3, activation=activation).double()
    unit.bn.momentum = momentum
    with torch.no_grad():
        unit.bn.weight.normal_(1, 2)
        unit.bn.bias.normal_(1, 2)
        unit.bn.running_mean.normal_()
        unit.bn.running_var.uniform_(0.5, 2.0)
    return unit


def fused(y: Tensor) -> bool:
    return "BatchNormActivation" in y.grad_fn.name()


@needs_kernel
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_is_the_two_modules(training: bool, name: str, layout: str, momentum: float | None, residual: bool) -> None:
    """Outputs, gradients and running statistics of two steps, in float64, at odd sizes."""
    unit = make_unit(ACTIVATIONS[name], momentum)
    x = torch.randn(2, 3, 9, 7, dtype=torch.double).to(memory_format=FORMATS[layout])
    other = torch.randn(2, 17, 9, 7, dtype=torch.double) if residual else None
    seen = []
    for run in (plainly, ConvBNAct.__call__):
        net = copy.deepcopy(unit).to(memory_format=FORMATS[layout])
        net.bn.train(training)
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = run(net, given, other)
        if run is not plainly and not residual:
            assert fused(y)
        grads = torch.autograd.grad(y.square().sum(), [given, *net.parameters()])
        seen.append([y, *grads, *net.buffers()])
    torch.testing.assert_close(seen[1], seen[0])


@needs_kernel
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_derivatives(training: bool, name: str) -> None:
    """First and second, of input, weight and bias."""
    torch.manual_seed(1)
    norm, act = nn.BatchNorm2d(2).double().train(training), ACTIVATIONS[name]()
    x = torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True)
    weight = torch.tensor([0.8, -1.3], dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, dtype=torch.double, requires_grad=True)

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            y = normalize_and_activate(self.norm, act, x)
            assert fused(y)
            return y

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(Unit(), {"norm.weight": weight, "norm.bias": bias}, (x,))

    torch.autograd.gradcheck(run, (x, weight, bias))
    torch.autograd.gradgradcheck(run, (x, weight, bias))


def maps_kept(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Different maps of the size of an output that the backward pass keeps."""
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.shape == (2, 16, 8, 8):
            kept[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run(x)
    assert y.requires_grad
    return len(kept)


@needs_kernel
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_maps_kept(training: bool) -> None:
    """Two for each unit, the input of the norm and that of the next convolution, where the modules keep three."""
    units = [ConvBNAct(16, 16, 3) for _ in range(4)]
    for unit in units:
        unit.bn.train(training)
    x = torch.randn(2, 16, 8, 8)

    def plain(y: Tensor) -> Tensor:
        for unit in units:
            y = plainly(unit, y)
        return y

    assert maps_kept(plain, x) == 3 * len(units)
    assert maps_kept(nn.Sequential(*units), x) == 2 * len(units)


class OwnNorm(nn.BatchNorm2d):
    pass


def hooked(norm: nn.Module) -> nn.Module:
    norm.register_forward_hook(lambda *_: None)
    return norm


def patched(act: nn.Module) -> nn.Module:
    act.forward = act.forward
    return act


@pytest.mark.parametrize(
    ("norm", "act"),
    [
        (OwnNorm(4), nn.ReLU6()),
        (nn.BatchNorm2d(4, affine=False), nn.ReLU6()),
        (nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU6()),
        (hooked(nn.BatchNorm2d(4)), nn.ReLU6()),
        (nn.BatchNorm2d(4), hooked(nn.ReLU6())),
        (nn.BatchNorm2d(4), patched(nn.ReLU6())),
        (nn.BatchNorm2d(4), nn.Hardtanh(-1, 1)),
        (nn.BatchNorm2d(4), nn.LeakyReLU(0.0)),
        (nn.Identity(), nn.ReLU6()),
        (nn.SyncBatchNorm(4).eval(), nn.ReLU6()),
    ],
    ids=[
        "subclass",
        "not affine",
        "no statistics",
        "hook on norm",
        "hook on activation",
        "other forward",
        "Hardtanh",
        "no slope",
        "folded",
        "sync",
    ],
)
def test_calls_the_modules(norm: nn.Module, act: nn.Module) -> None:
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = normalize_and_activate(norm, act, x)
    assert not fused(y)
    if norm.training and not isinstance(norm, nn.Identity):
        torch.testing.assert_close(y, act(copy.deepcopy(norm)(x)))


def test_calls_the_modules_for_the_reference_backend() -> None:
    x, unit = torch.randn(2, 3, 5, 5), ConvBNAct(3, 4, 1)
    with use_backend("reference"):
        assert not fused(unit(x))
    with torch.no_grad():
        assert unit(x).grad_fn is None


def test_under_transforms() -> None:
    """``torch.func`` and ``torch.compile`` see PyTorch's own operators. The first cannot change running statistics."""
    unit, x = make_unit(nn.ReLU6), torch.randn(2, 3, 5, 5, dtype=torch.double)
    unit.bn.eval()
    parameters = dict(unit.named_parameters())

    def loss(parameters: dict[str, Tensor], net: nn.Module = unit) -> Tensor:
        return functional_call(net, parameters, (x,)).square().sum()

    wanted = dict(zip(parameters, torch.autograd.grad(loss(parameters), list(parameters.values())), strict=True))
    torch.testing.assert_close(torch.func.grad(loss)(parameters), wanted)
    compiled = torch.compile(copy.deepcopy(unit), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).square().sum(), list(compiled.parameters()))
    torch.testing.assert_close(found, tuple(wanted.values()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # of what PyTorch decomposes
def test_forward_mode_and_batched_gradients() -> None:
    unit, x = make_unit(nn.ReLU6), torch.randn(2, 3, 5, 5, dtype=torch.double, requires_grad=True)
    seen = []
    for run in (plainly, ConvBNAct.__call__):
        net = copy.deepcopy(unit)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(run(net, forward_ad.make_dual(x.detach(), torch.ones_like(x)))).tangent
        y = run(net, x)
        grads = torch.autograd.grad(
            y, [x, *net.parameters()], torch.eye(3, y.numel()).double().view(3, *y.shape), is_grads_batched=True
        )
        seen.append((tangent, *grads))
    torch.testing.assert_close(seen[1], seen[0])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """Half maps, parameters and statistics in float32."""
    unit, x = make_unit(nn.ReLU6), torch.randn(2, 3, 9, 7, dtype=torch.double)
    seen = []
    for run, kind in ((plainly, torch.double), (plainly, torch.float), (ConvBNAct.__call__, torch.float)):
        net = copy.deepcopy(unit).to(kind)
        with torch.autocast("cpu", dtype, enabled=kind == torch.float):
            y = run(net, x.to(kind))
        seen.append((y, *torch.autograd.grad(y.square().sum(), list(net.parameters())), *net.buffers()))
    assert seen[2][0].dtype == dtype
    for gold, judge, value in zip(*seen, strict=True):
        assert value.dtype == judge.dtype
        gold = gold.detach()
        assert error(value, gold) <= tolerance(gold, error(judge, gold), 2 * 9 * 7, dtype)


def test_parameters_without_gradients() -> None:
    unit = make_unit(nn.ReLU6)
    unit.bn.requires_grad_(False)
    x = torch.randn(2, 3, 9, 7, dtype=torch.double)
    for run in (plainly, ConvBNAct.__call__):
        run(unit, x).square().sum().backward()
    assert unit.bn.weight.grad is None
    assert unit.bn.bias.grad is None
    twice = unit.conv.weight.grad.clone()
    unit.conv.weight.grad = None
    plainly(unit, x).square().sum().backward()
    torch.testing.assert_close(twice, 2 * unit.conv.weight.grad)


def test_one_value_per_channel() -> None:
    """The norm's own error."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ConvBNAct(3, 4, 1)(torch.randn(1, 3, 1, 1))
