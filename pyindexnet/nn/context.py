# SPDX-License-Identifier: Apache-2.0
"""Context modules of [TMFNet] for the smallest map of an encoder: pyramid pooling and trimap-guided multi-scale pooling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.ops.non_background_pool import non_background_pool

#: What [TMFNet] puts between a linear layer and the next.
Leaky = partial(nn.LeakyReLU, 0.01)
EPS = 1e-6
NO_EPS = 1e-30
KERNEL_SIZES = (31, 17, 11, 5)
BINS = (1, 2, 3, 6)


class TMP(nn.Module):
    """Trimap-guided non-background multi-scale pooling, [TMFNet] section 5.1.

    y_b = NBP_{k_b}(Leaky(BN(W_b x)), mask) for each branch b, Eq. 3; x and the branches are concatenated. The 1x1 convolutions
    of all branches are one convolution, and all their poolings one call of :func:`pyindexnet.non_background_pool`.

    Args:
        in_channels: channels of the map.
        branch_channels: output channels of one branch.
        kernel_sizes: side of each branch's window, odd; stride 1. The paper's suit a map of 32 x 32.
        masked: pool over what the trimap does not call background; False ("MP" in [TMFNet] table 3): over all pixels of the
            window.
    Shape: x (N, in_channels, h, w), mask (N, 1, h, w) >= 0 -> (N, in_channels + len(kernel_sizes) * branch_channels, h, w), the
        branches in the order of ``kernel_sizes`` after x.
    """

    def __init__(
        self,
        in_channels: int,
        branch_channels: int = 256,
        *,
        kernel_sizes: Sequence[int] = KERNEL_SIZES,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        self.masked = masked
        self.out_channels = in_channels + len(self.kernel_sizes) * branch_channels
        self.branches = ConvBNAct(in_channels, len(self.kernel_sizes) * branch_channels, 1, bias=True, activation=Leaky)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # the mean of a mask of ones is 1 and needs no guard: this eps vanishes beside it
        mask, eps = (mask, EPS) if self.masked else (torch.ones_like(mask), NO_EPS)
        pooled = non_background_pool(self.branches(x), mask, kernel_size=self.kernel_sizes, eps=eps)
        return torch.cat((x, pooled), 1)


class PyramidPooling(nn.Module):
    """Pyramid pooling, the context module of [TMFNet]'s baseline.

    A branch is the mean over each cell of a coarse grid, a 1x1 convolution, and bilinear interpolation back; x and the branches
    are concatenated.

    Args:
        in_channels: channels of the map.
        branch_channels: output channels of one branch.
        bins: side of each branch's grid.
        masked: means over what the trimap does not call background ("TP" in [TMFNet] table 3): mean(x mask) / (mean(mask) +
            1e-6).
    Shape: x (N, in_channels, h, w), mask (N, 1, h, w) >= 0, used where ``masked`` -> (N, in_channels + len(bins) *
        branch_channels, h, w). In training N must be at least 2 where a grid has one cell: its batch norm sees one value per
        image and channel.
    """

    def __init__(
        self, in_channels: int, branch_channels: int = 256, *, bins: Sequence[int] = BINS, masked: bool = False
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.masked = masked
        self.out_channels = in_channels + len(self.bins) * branch_channels
        self.branches = nn.ModuleList(
            ConvBNAct(in_channels, branch_channels, 1, bias=True, activation=Leaky) for _ in self.bins
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = x * mask if self.masked else x
        out = [x]
        for size, branch in zip(self.bins, self.branches, strict=True):
            mean = F.adaptive_avg_pool2d(seen, size)
            if self.masked:
                mean = mean / (F.adaptive_avg_pool2d(mask, size) + EPS)
            out.append(F.interpolate(branch(mean), size=x.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(out, 1)
