# SPDX-License-Identifier: Apache-2.0
"""Training through convolutions by minimal filtering against the direct sum."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.nn.batch_norm import normalize_and_activate
from pyindexnet.nn.filtered_conv import convolve
from pyindexnet.ops import winograd
from pyindexnet.testing.parity import error, tolerance

ABSENT = winograd.why_not(
    torch.zeros(1, 16, 8, 8).contiguous(memory_format=torch.channels_last), torch.zeros(16, 16, 5, 5), training=True
)
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))


def case(channels: int = 16, out: int = 24, size: int = 5, **options: object) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, size, **{"padding": size // 2, **options})
    return conv, torch.randn(2, channels, 50, 47).contiguous(memory_format=torch.channels_last).requires_grad_()


def filtered(y: Tensor) -> bool:
    return "FilteredConvolution" in y.grad_fn.name()


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "out", "bias"), [(16, 24, True), (40, 17, False), (32, 1, True)], ids=["16 to 24", "40 to 17", "32 to 1"]
)
def test_step(channels: int, out: int, bias: bool, weights: torch.memory_format) -> None:
    """Output and all gradients."""
    conv, x = case(channels, out, bias=bias)
    conv = conv.to(memory_format=weights)
    grad = torch.randn(2, out, 50, 47)
    seen = []
    for run, dtype in ((nn.Conv2d.__call__, torch.double), (nn.Conv2d.__call__, torch.float), (convolve, torch.float)):
        net, given = copy.deepcopy(conv).to(dtype), x.detach().to(dtype).requires_grad_()
        y = run(net, given)
        seen.append((y, *torch.autograd.grad(y, [given, *net.parameters()], grad.to(dtype))))
    assert filtered(y)
    assert seen[2][1].is_contiguous(memory_format=torch.channels_last)
    terms = (channels * 25, out * 25, 2 * 50 * 47, 2 * 50 * 47)
    for gold, judge, value, count in zip(*([t.detach() for t in found] for found in seen), terms[: len(seen[0])], strict=True):
        assert error(value, gold) <= tolerance(gold, error(judge, gold), count, torch.float)
        assert error(value, gold) <= 1e-4 * gold.abs().max()  # the rule alone lets long sums do anything


def test_second_derivative() -> None:
    conv, x = case()
    seen = []
    for run in (nn.Conv2d.__call__, convolve):
        (grad,) = torch.autograd.grad(run(conv, x).square().sum(), x, create_graph=True)
        seen.append(torch.autograd.grad(grad.square().sum(), [x, conv.weight]))
    for want, got in zip(*seen, strict=True):
        assert error(got, want) <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("norm", [False, True], ids=["convolution", "unit"])
def test_batched_gradients(norm: bool) -> None:
    conv, x = case()
    y = convolve(conv, x)
    if norm:
        y = normalize_and_activate(nn.BatchNorm2d(24), nn.ReLU6(), y)
    grads, inputs = torch.randn(2, *y.shape), [x, conv.weight]

    def gradients(grad: Tensor, **options: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, inputs, grad, retain_graph=True, **options)

    for found in (gradients(grads, is_grads_batched=True), torch.vmap(gradients)(grads)):
        for i, grad in enumerate(grads):
            for batched, want in zip(found, gradients(grad), strict=True):
                assert error(batched[i], want) <= 1e-4 * want.abs().max()


def test_gradient_of_any_layout() -> None:
    conv, x = case()
    y = convolve(conv, x)
    whole = torch.randn(2, 40, 50, 47)
    for grad in (whole[:, 8:32], whole.contiguous(memory_format=torch.channels_last)[:, 8:32], torch.ones(()).expand(y.shape)):
        found, wanted = (
            torch.autograd.grad(y, [x, conv.weight], g, retain_graph=True)
            for g in (grad, grad.contiguous(memory_format=torch.channels_last))
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("needed", ["input", "weight"])
def test_one_gradient(needed: str) -> None:
    conv, x = case()
    (conv.requires_grad_ if needed == "input" else x.requires_grad_)(False)
    y = convolve(conv, x)
    assert filtered(y)
    y.sum().backward()
    assert (x.grad is None) == (needed == "weight")
    assert (conv.weight.grad is None) == (needed == "input")


@pytest.mark.parametrize(
    "options",
    [{"channels": 8}, {"size": 3}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 1}, {"padding_mode": "circular"}],
    ids=str,
)
def test_other_convolutions(options: dict) -> None:
    conv, x = case(**options)
    y = convolve(conv, x)
    assert not filtered(y)
    torch.testing.assert_close(y, conv(x), rtol=0, atol=0)


def test_calls_the_module() -> None:
    conv, x = case()
    assert filtered(convolve(conv, x))
    with use_backend("reference"):
        assert not filtered(convolve(conv, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(conv, x).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(convolve(conv, x), conv(x))
    for given in (x[:, :, :9, :9], x.contiguous(), x.detach().double()):
        net = copy.deepcopy(conv).to(given)
        assert not filtered(convolve(net, given))
    conv.register_forward_hook(lambda *_: None)
    assert not filtered(convolve(conv, x))
