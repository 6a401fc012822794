# SPDX-License-Identifier: Apache-2.0
"""Convolution blocks shared by the index networks, the ASPP and the models."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pyindexnet.nn.batch_norm import normalize_and_activate
from pyindexnet.nn.filtered_conv import convolve

_LINEAR = nn.Identity()


class ConvBNAct(nn.Module):
    """Convolution, batch norm, activation: the unit that inference folds into one convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel.
        stride: step in pixels of the input.
        padding: zeros on each side; None keeps the size at stride 1 (odd kernels).
        dilation: distance between taps in pixels.
        groups: groups of the convolution.
        bias: whether the convolution has a bias of its own (the VGG-16 encoder does).
        activation: builds the activation, ReLU6 by default; None for a linear output.
    Shape: x (N, in_channels, H, W), residual, added before the activation, as the output or None -> (N, out_channels, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: Callable[[], nn.Module] | None = nn.ReLU6,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=bias)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        # no name for the convolution's output: without gradients it is freed before the activation
        if residual is None:
            return normalize_and_activate(self.bn, self.act, convolve(self.conv, x))
        return self.act(normalize_and_activate(self.bn, _LINEAR, convolve(self.conv, x)) + residual)


class DepthwiseSeparable(nn.Sequential):
    """Depthwise k x k then pointwise convolution, batch norm and an activation (ReLU6) after each.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.depthwise = ConvBNAct(
            in_channels, in_channels, kernel_size, dilation=dilation, groups=in_channels, activation=activation
        )
        self.pointwise = ConvBNAct(in_channels, out_channels, 1, activation=activation)


def init_weights(module: nn.Module) -> None:
    """Initialise every convolution with N(0, 2 / (k*k*out_channels)) and every batch norm with 1 and 0.

    The rule of the published models. Their papers name the improved Xavier initialisation instead, whose variance
    divides by the input channels; the two agree where a layer keeps its width.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels
            nn.init.normal_(m.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
