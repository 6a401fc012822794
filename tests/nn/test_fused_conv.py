# SPDX-License-Identifier: Apache-2.0
"""One convolution with batch norm, activation and residual in every form that it may take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn import FusedConv
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.testing.parity import error, tolerance

ACTIVATIONS: dict[str, Any] = {
    "linear": None,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,  # oneDNN's binding has none
}
#: in, out, side, options
GEOMETRIES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "point": (5, 7, 1, {}),
    "padded_point": (5, 7, 1, {"padding": 2}),
    "depthwise": (6, 6, 3, {"groups": 6, "dilation": 2}),
    "strided": (5, 8, 4, {"stride": 2, "padding": 1, "bias": True}),
    "filtered": (20, 9, 5, {}),
    "filtered_dilated": (20, 9, 5, {"dilation": 2}),
}


def unit(geometry: str, activation: str) -> ConvBNAct:
    channels, out, size, options = GEOMETRIES[geometry]
    torch.manual_seed(0)
    module = ConvBNAct(channels, out, size, activation=ACTIVATIONS[activation], **options)
    nn.init.normal_(module.bn.weight)
    nn.init.normal_(module.bn.bias)
    module.bn.running_mean.normal_()
    module.bn.running_var.uniform_(0.5, 2.0)
    return module.eval()


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_output(geometry: str, activation: str, residual: bool, dtype: torch.dtype) -> None:
    plain = unit(geometry, activation)
    x = torch.randn(2, GEOMETRIES[geometry][0], 19, 15).to(dtype)
    with torch.inference_mode():
        more = torch.randn(plain(x.float()).shape).to(dtype) if residual else None
        gold = copy.deepcopy(plain).double()(x.double(), None if more is None else more.double())
        judge = error(copy.deepcopy(plain).to(dtype)(x, more), gold)
        source = plain.double() if dtype == torch.float64 else plain  # what is folded in float32 stays as exact as that
        fused = FusedConv(source.conv, source.bn, source.act).to(dtype).to(memory_format=torch.channels_last)
        found = fused(x.contiguous(memory_format=torch.channels_last), more)
    bound = tolerance(gold, judge, plain.conv.weight[0].numel(), dtype)
    assert error(found, gold) <= bound, f"error {error(found, gold):.3e}, bound {bound:.3e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_channels_that_come_apart(layout: torch.memory_format, dtype: torch.dtype) -> None:
    channels = 40
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 9, 5, padding=2)
    x = torch.randn(1, channels, 19, 16, dtype=dtype)
    first, more = (t.contiguous(memory_format=layout) for t in x.split((17, 23), 1))
    with torch.inference_mode():
        gold = copy.deepcopy(conv).double()(x.double())
        found = FusedConv(conv).to(dtype)(first, more=more)
        bound = tolerance(gold, error(conv.to(dtype)(x), gold), conv.weight[0].numel(), dtype)
    assert error(found, gold) <= bound


class LeakyNorm(nn.BatchNorm2d):
    """What an in-place ABN computes: a positive factor, then a Leaky ReLU."""

    negative_slope = 0.1

    def gamma(self) -> Tensor:
        return self.weight.abs() + self.eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.gamma(), self.bias, False, 0.0, self.eps)
        return F.leaky_relu(y, self.negative_slope)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_norm_with_an_activation(residual: bool) -> None:
    plain = unit("filtered", "linear")
    norm = LeakyNorm(9)
    norm.load_state_dict(plain.bn.state_dict())
    plain.bn = norm.eval()
    plain = plain.double()
    x = torch.randn(1, 20, 16, 16, dtype=torch.float64)
    more = torch.randn(1, 9, 16, 16, dtype=torch.float64) if residual else None
    with torch.inference_mode():
        torch.testing.assert_close(FusedConv(plain.conv, plain.bn, plain.act)(x, more), plain(x, more))
    with pytest.raises(ValueError, match="FusedConv: act must be None after a norm with an activation of its own, got ReLU"):
        FusedConv(plain.conv, plain.bn, nn.ReLU())


def test_empty_batch() -> None:
    plain = unit("filtered", "relu6")
    with torch.inference_mode():
        assert FusedConv(plain.conv, plain.bn, plain.act)(torch.randn(0, 20, 8, 8)).shape == (0, 9, 8, 8)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="FusedConv: padding of conv must be a number of zeros, got"):
        FusedConv(nn.Conv2d(2, 2, 3, **options))


@pytest.mark.parametrize("geometry", ["point", "filtered"])
def test_prepared_weights_follow_what_is_loaded_and_converted(geometry: str) -> None:
    """Inference tensors count no changes: weights that became some, by a conversion or by assignment, are never stale."""
    plain = unit(geometry, "relu")
    x = torch.randn(1, GEOMETRIES[geometry][0], 17, 16)
    with torch.inference_mode():
        fused = FusedConv(plain.conv, plain.bn, plain.act).double().float()
        assert not fused.weight.is_inference()
        before = fused(x)
        fused.weight.mul_(2)
        fused.bias.mul_(2)
        torch.testing.assert_close(fused(x), 2 * before)
        fused.bias.add_(1e6)
        assert fused(x).min() > 0
        fused.load_state_dict({k: v.clone() for k, v in FusedConv(plain.conv, plain.bn).state_dict().items()}, assign=True)
        assert fused.weight.is_inference()
        for factor in (1, 3):
            fused.weight.mul_(factor)
            fused.bias.mul_(factor)
            torch.testing.assert_close(fused(x), factor * before)
        assert fused._kept is None
        fused.float()
        torch.testing.assert_close(fused(x), 3 * before)
        assert not fused.weight.is_inference()
        assert fused._kept is not None
