# SPDX-License-Identifier: Apache-2.0
"""CARAFE: resampling with kernels that are predicted from the map itself.

Papers: "CARAFE: Content-Aware ReAssembly of FEatures", Wang et al., ICCV 2019 (upsampling); "CARAFE++: Unified Content-Aware
ReAssembly of FEatures", Wang et al., TPAMI 2021 (downsampling). A 1x1 convolution compresses the channels, a k x k convolution
predicts a kernel for every output pixel; pixel shuffle, softmax and reassembly are one operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.arguments import require_count, require_map, require_one_of
from pyindexnet.ops.dynamic_downsample import dynamic_downsample
from pyindexnet.ops.dynamic_upsample import check_upsampled_size, dynamic_upsample

#: Of the initial weights of a convolution that predicts kernels.
KERNEL_STD = 0.001
SCALES = range(1, 5)


def init_prediction(conv: nn.Conv2d, kernels: Tensor | None = None) -> None:
    """Let a convolution with a bias predict ``kernels`` (zeros: the mean of the window, after a softmax), plus small noise."""
    nn.init.normal_(conv.weight, 0.0, KERNEL_STD)
    with torch.no_grad():
        bias = cast(Tensor, conv.bias)
        bias.zero_() if kernels is None else bias.copy_(kernels)


class _Predictor(nn.Module):
    """The layers before the reassembly, ``compress`` and ``predict``; arguments as documented below."""

    #: Sides of the window.
    kernel_sizes: Iterable[int]
    #: Whether it predicts one kernel for each scale x scale pixels, else as many for each.
    reduces: bool

    def __init__(
        self,
        channels: int,
        *,
        scale: int = 2,
        kernel_size: int = 5,
        groups: int = 1,
        compressed_channels: int | None = 64,
        encoder_kernel_size: int = 3,
        encoder_dilation: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_one_of(name, "scale", scale, SCALES)
        require_one_of(name, "kernel_size", kernel_size, self.kernel_sizes)
        for option, value in (("channels", channels), ("groups", groups), ("encoder_dilation", encoder_dilation)):
            require_count(name, option, value)
        if channels % groups:
            raise ValueError(f"{name}: groups must divide channels ({channels}), got {groups}")
        if compressed_channels is not None:
            require_count(name, "compressed_channels", compressed_channels)
        require_count(name, "encoder_kernel_size", encoder_kernel_size, odd=True)
        self.channels = channels
        self.scale = scale
        self.kernel_size = kernel_size
        self.groups = groups
        self.compress = None if compressed_channels is None else nn.Conv2d(channels, compressed_channels, 1)
        self.predict = nn.Conv2d(
            channels if compressed_channels is None else compressed_channels,
            groups * kernel_size**2 * (1 if self.reduces else scale**2),
            encoder_kernel_size,
            stride=scale if self.reduces else 1,
            padding=encoder_dilation * (encoder_kernel_size // 2),
            dilation=encoder_dilation,
        )
        self.init_kernels()

    def init_kernels(self) -> None:
        """Start from the mean of the window and small noise."""
        if self.compress is not None:
            nn.init.xavier_uniform_(self.compress.weight)
            nn.init.zeros_(cast(Tensor, self.compress.bias))
        init_prediction(self.predict)

    def logits(self, x: Tensor, beyond: tuple[int, int] = (0, 0)) -> Tensor:
        """The raw kernels for ``x``, as the operator takes them, and of so many rows and columns beyond its last ones."""
        x = x if self.compress is None else self.compress(x)
        if any(beyond):  # the prediction sees zeros beyond its map anyway: the kernels within stay what they are
            x = F.pad(x, (0, beyond[1], 0, beyond[0]))
        return self.predict(x)


class CARAFE(_Predictor):
    """Upsampling with a predicted, softmax-normalised kernel for every output pixel; :func:`pyindexnet.dynamic_upsample`.

    Args:
        channels: C.
        scale: r, 1 to 4.
        kernel_size: side of the window, 1, 3, 5 or 7.
        groups: sets of channels with kernels of their own; divides C.
        compressed_channels: of the 1x1 convolution before the prediction; None: no such layer.
        encoder_kernel_size: side of the predicting convolution, odd.
        encoder_dilation: its dilation.
    Shape: (N, C, h, w) -> (N, C, H, W): ``output_size`` = (H, W) with floor(H / r) <= h <= ceil(H / r), else (r h, r w). Where
        h is ceil(H / r) - 1, the kernels of the last rows are predicted one row below the map, which goes on with zeros there,
        as the predicting convolution sees its border; columns likewise.
    Raises:
        ValueError: a value that is not allowed, another number of channels, or another dtype than the weights'.
        TypeError: x is not a tensor.
    """

    kernel_sizes = (1, 3, 5, 7)
    reduces = False

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        require_map(type(self).__name__, "x", x, self.channels, self.predict.weight)
        beyond = (0, 0)
        if output_size is not None:
            height, width = check_upsampled_size("CARAFE", x, self.scale, output_size)
            beyond = (-(-height // self.scale) - x.shape[2], -(-width // self.scale) - x.shape[3])
        return dynamic_upsample(
            x,
            self.logits(x, beyond),
            kernel_size=self.kernel_size,
            groups=self.groups,
            scale=self.scale,
            normalization="softmax",
            output_size=output_size,
        )


class CARAFEDownsample(_Predictor):
    """Downsampling with a predicted, softmax-normalised kernel for every output pixel; :func:`pyindexnet.dynamic_downsample`.

    Args:
        channels, groups, compressed_channels, encoder_kernel_size, encoder_dilation: as for :class:`CARAFE`; the predicting
            convolution has stride r.
        scale: r, 1 to 4.
        kernel_size: side of the window, 1 to 14.
    Shape: (N, C, H, W) -> (N, C, ceil(H / r), ceil(W / r)).
    Raises:
        ValueError: a value that is not allowed, another number of channels, or another dtype than the weights'.
        TypeError: x is not a tensor.
    """

    kernel_sizes = range(1, 15)
    reduces = True

    def forward(self, x: Tensor) -> Tensor:
        require_map(type(self).__name__, "x", x, self.channels, self.predict.weight)
        return dynamic_downsample(
            x, self.logits(x), kernel_size=self.kernel_size, groups=self.groups, scale=self.scale, normalization="softmax"
        )
