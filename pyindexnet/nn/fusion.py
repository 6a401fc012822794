# SPDX-License-Identifier: Apache-2.0
"""Fusion of a high-level map with a low-level one of about twice its size: [TMFNet]'s GLF, and what it is compared with.

Each takes ``(high, low, context)`` and returns a map of the size of ``low``; ``context`` is a map whose mean over space is the
global feature G, and None where a module uses none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.arguments import require_count, require_one_of
from pyindexnet.nn.carafe import CARAFE, init_prediction
from pyindexnet.nn.context import Leaky
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.ops.grouped_spatial_fusion import grouped_spatial_fusion
from pyindexnet.reference.window import GROUP_ORDERS

GLOBAL_SOURCES = ("tmp", "high", "c5", "none")
SCALE = 2


class GLF(nn.Module):
    """Global-local context-aware fusion, [TMFNet] Eqs. 4 to 7.

    X = W [shuffle(high), low]; K = conv3x3(Leaky(W_x X + W_g G)), raw; Y is X, fused within each channel group by that group's
    k x k kernel at each pixel (:func:`pyindexnet.grouped_spatial_fusion`); out = Leaky(BN(W_y Y)).

    Args:
        high_channels: of the high-level map, a multiple of 4: pixel shuffle takes four channels for one at twice the size.
        low_channels: of the low-level map.
        inter_channels: of X, C_3 in the paper; a multiple of ``group_channels``.
        out_channels: of the output.
        global_source: where G comes from. ``"tmp"`` and ``"c5"``: from the map that ``forward`` gets as ``context``, the output
            of the context module or the encoder's last map ("C" in [TMFNet] table 3); ``"high"``: from the high-level map
            itself ("B"); ``"none"``: no global feature ("LF").
        global_channels: channels of that map; ``high_channels`` for ``"high"``.
        kernel_size: side of the fusion kernels: 1, 3, 5 or 7.
        group_channels: channels that share a kernel.
        reduction: ``inter_channels`` over the hidden channels of the kernel branch.
        group_order: which channels share a kernel. ``"blocked"``: neighbours, as in the released code; ``"interleaved"``: c
            with c modulo the number of groups, Eq. 6 as it is written. The one is the other with the channels of X permuted, so
            that published weights load into both; neighbours are the default because a vector of them needs one kernel.
    Shape: high (N, high_channels, h, w), low (N, low_channels, H, W) with H <= 2h and W <= 2w, where the shuffled map is
        cropped at the bottom and right; context (N, global_channels, any, any) -> (N, out_channels, H, W).
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        high_channels: int,
        low_channels: int,
        inter_channels: int,
        out_channels: int,
        *,
        global_source: str = "tmp",
        global_channels: int = 256,
        kernel_size: int = 3,
        group_channels: int = 16,
        reduction: int = 4,
        group_order: str = "blocked",
    ) -> None:
        super().__init__()
        require_one_of("GLF", "global_source", global_source, GLOBAL_SOURCES)
        require_one_of("GLF", "kernel_size", kernel_size, (1, 3, 5, 7))
        require_one_of("GLF", "group_order", group_order, GROUP_ORDERS)
        counts = {
            "high_channels": high_channels,
            "low_channels": low_channels,
            "inter_channels": inter_channels,
            "out_channels": out_channels,
            "global_channels": global_channels,
            "group_channels": group_channels,
            "reduction": reduction,
        }
        for option, value in counts.items():
            require_count("GLF", option, value)
        if high_channels % SCALE**2:
            raise ValueError(f"GLF: high_channels must be a multiple of {SCALE**2}, got {high_channels}")
        if inter_channels % group_channels:
            raise ValueError(
                f"GLF: inter_channels must be a multiple of group_channels ({group_channels}), got {inter_channels}"
            )
        if reduction > inter_channels:
            raise ValueError(f"GLF: reduction must be from 1 to inter_channels ({inter_channels}), got {reduction}")
        self.global_source = global_source
        self.kernel_size = kernel_size
        self.group_order = group_order
        self.groups = inter_channels // group_channels
        hidden = inter_channels // reduction
        self.distribute = nn.Conv2d(high_channels // SCALE**2 + low_channels, inter_channels, 1)
        self.local_embedding = nn.Conv2d(inter_channels, hidden, 1)
        self.global_embedding = None
        if global_source != "none":
            self.global_embedding = nn.Conv2d(high_channels if global_source == "high" else global_channels, hidden, 1)
        self.act = Leaky()
        self.predict = nn.Conv2d(hidden, self.groups * kernel_size**2, 3, padding=1)
        self.merge = ConvBNAct(inter_channels, out_channels, 1, bias=True, activation=Leaky)
        self.init_kernels()

    def init_kernels(self) -> None:
        """Start from Y = X and small noise. The kernels multiply X and are made from it: were they as large, Y would grow with
        the square of X, and a stack of three with its eighth power."""
        identity = torch.zeros(self.groups, self.kernel_size**2)
        identity[:, self.kernel_size**2 // 2] = 1
        init_prediction(self.predict, identity.flatten())

    def forward(self, high: Tensor, low: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.distributed(high, low)
        kernels = self.kernels(x, high if self.global_source == "high" else context)
        return self.merge(self.fused(x, kernels))

    def distributed(self, high: Tensor, low: Tensor) -> Tensor:
        """X of Eq. 4, (N, inter_channels, H, W)."""
        shuffled = F.pixel_shuffle(high, SCALE)[:, :, : low.shape[2], : low.shape[3]]
        return self.distribute(torch.cat((shuffled, low), 1))

    def kernels(self, x: Tensor, context: Tensor | None) -> Tensor:
        """K of Eq. 5, (N, groups * k * k, H, W): channel g * k * k + t is tap t of group g."""
        hidden = self.local_embedding(x)
        if self.global_embedding is not None:
            if context is None:
                raise ValueError(f"GLF: context must be a map for global_source={self.global_source!r}, got None")
            hidden = hidden + self.global_embedding(context.mean((2, 3), keepdim=True))
        return self.predict(self.act(hidden))

    def fused(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Y of Eq. 6, the shape of X."""
        return grouped_spatial_fusion(
            x, kernels, groups=self.groups, kernel_size=self.kernel_size, group_order=self.group_order
        )


class StaticFusion(nn.Module):
    """The fusion of [TMFNet]'s baseline: bilinear upsampling, concatenation, 3x3 convolution, batch norm, Leaky ReLU.

    Shape: high (N, high_channels, h, w), low (N, low_channels, H, W) -> (N, out_channels, H, W). ``context`` is not used.
    """

    def __init__(self, high_channels: int, low_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBNAct(high_channels + low_channels, out_channels, 3, bias=True, activation=Leaky)

    def upsample(self, high: Tensor, low: Tensor) -> Tensor:
        """The high-level map at the size of the low-level one."""
        return F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=False)

    def forward(self, high: Tensor, low: Tensor, context: Tensor | None = None) -> Tensor:
        return self.conv(torch.cat((self.upsample(high, low), low), 1))


class CarafeFusion(StaticFusion):
    """:class:`StaticFusion` with CARAFE in place of bilinear upsampling ("Basic+TMP+CARAFE" in [TMFNet] table 3).

    One convolution predicts the kernels, without a channel compressor before it.

    Args:
        high_channels, low_channels, out_channels: as there.
        steps: upsamplings by 2 from the high-level map to the low-level one. What is too large is cropped at the bottom and
            right.
    """

    def __init__(self, high_channels: int, low_channels: int, out_channels: int, *, steps: int = 1) -> None:
        super().__init__(high_channels, low_channels, out_channels)
        self.upsamplers = nn.Sequential(*(CARAFE(high_channels, compressed_channels=None) for _ in range(steps)))

    def upsample(self, high: Tensor, low: Tensor) -> Tensor:
        return self.upsamplers(high)[:, :, : low.shape[2], : low.shape[3]]
