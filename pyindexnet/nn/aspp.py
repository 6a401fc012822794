# SPDX-License-Identifier: Apache-2.0
"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyindexnet.nn.conv import ConvBNAct, DepthwiseSeparable


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, with the depthwise-separable branches of [IndexNet] unless told otherwise.

    Five branches of ``hidden`` channels (1x1; three dilated 3x3; the mean of the whole map), concatenated, a 1x1
    convolution, then dropout. Batch norm and an activation after every convolution. The context module of rows B7, B9 and B11
    of [IndexNet] table 1; with full convolutions, that of "Basic+ASPP" in [TMFNet] table 3.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        hidden: channels of a branch.
        dilations: of the three 3x3 branches; 2, 4, 8 at output stride 32.
        dropout: probability of dropping an output value in training.
        separable: the dilated convolutions are depthwise, then 1x1; else full.
        activation: builds the activation.
    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W). In training N must be at least 2: the mean branch gives one
        value per image and channel to its batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 256,
        dilations: tuple[int, int, int] = (2, 4, 8),
        dropout: float = 0.5,
        separable: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.point = ConvBNAct(in_channels, hidden, 1, activation=activation)
        self.atrous = nn.ModuleList()
        for d in dilations:
            if separable:
                self.atrous.append(DepthwiseSeparable(in_channels, hidden, 3, dilation=d, activation=activation))
            else:
                self.atrous.append(ConvBNAct(in_channels, hidden, 3, dilation=d, activation=activation))
        self.image = ConvBNAct(in_channels, hidden, 1, activation=activation)
        self.merge = ConvBNAct((2 + len(dilations)) * hidden, out_channels, 1, activation=activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        branches = [self.point(x), *(branch(x) for branch in self.atrous), mean]
        return self.dropout(self.merge(torch.cat(branches, 1)))
