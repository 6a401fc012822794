# SPDX-License-Identifier: Apache-2.0
"""Light-weight RefineNet for image matting on MobileNetV2. Baseline B2 of [IndexNet] table 1.

Papers: "RefineNet", Lin et al., CVPR 2017, and its light-weight form, Nekrasov et al., BMVC 2018, as
compared in [IndexNet] section 5.2 ([Thesis] section 3.6.1). Written from the papers and from arrays
measured on the published network; no published code is included. Weights converted from the published ones
stay under their own licence.

Four levels, coarse to fine. A level sums the encoder maps of its resolution, each brought to one width by a
1x1 convolution, and the level above, resized; then chained residual pooling adds context. The alpha is
predicted at a quarter of the resolution and resized. Every resize is bilinear with aligned corners; sizes
as in ``deeplabv3plus_matting``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, conv_unit_keys, register_key_map, register_published_options
from pyindexnet.models.indexnet_matting import Head
from pyindexnet.models.mobilenetv2 import MobileNetV2, encoder_key_map
from pyindexnet.models.registry import register_model
from pyindexnet.nn.conv import ConvBNAct, init_weights
from pyindexnet.nn.resampling import resize_like

CHANNELS = 256
POOLINGS = 4
# encoder stages that each level sums, coarse to fine
LEVELS = ((7, 6), (5, 4), (3,), (2,))


class ChainedResidualPooling(nn.Module):
    """x plus the outputs of a chain of (5x5 max pooling at stride 1, 1x1 convolution, batch norm, ReLU6).

    Args:
        channels: of input and output.
        blocks: links of the chain.
    Shape: (N, channels, H, W) -> the same.
    """

    def __init__(self, channels: int, *, blocks: int = POOLINGS) -> None:
        super().__init__()
        self.links = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(5, stride=1, padding=2), ConvBNAct(channels, channels, 1)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for link in self.links:
            y = link(y)
            x = x + y
        return x


class RefineLevel(nn.Module):
    """One level: sum of adapted encoder maps and of the level above, ReLU6, chained residual pooling.

    Args:
        in_channels: channels of each encoder map.
        channels: of the level.
        last: without the closing 1x1 convolution: the prediction layer follows.
    Shape: maps (N, in_channels[i], H, W) of one size, and the level above, (N, channels, any, any) or None ->
        (N, channels, H, W).
    """

    def __init__(self, in_channels: list[int], channels: int, *, last: bool = False) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(ConvBNAct(c, channels, 1) for c in in_channels)
        self.act = nn.ReLU6()
        self.pooling = ChainedResidualPooling(channels)
        self.output = nn.Identity() if last else ConvBNAct(channels, channels, 1)

    def forward(self, features: list[Tensor], above: Tensor | None) -> Tensor:
        x = self.inputs[0](features[0])
        for adapt, feature in zip(self.inputs[1:], features[1:], strict=True):
            x = x + adapt(feature)
        if above is not None:
            x = x + resize_like(above, x)
        return self.output(self.pooling(self.act(x)))


@register_model("refinenet_matting")
class RefineNetMatting(nn.Module):
    """RefineNet matting network, 3,254,587 parameters at width 1. [IndexNet] table 1, row B2.

    Args:
        output_stride: 32 (B2), 16 or 8: reduction of the encoder.
        width: multiplier of all channel counts, rounded down; 1 is the published network.
    Shape: (N, 4, H, W) -> (N, 1, H, W), any H and W.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(self, *, output_stride: int = 32, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = MobileNetV2(width=width, output_stride=output_stride)
        channels = int(CHANNELS * width)
        self.levels = nn.ModuleList(
            RefineLevel([self.encoder.channels[s] for s in stages], channels, last=stages is LEVELS[-1]) for stages in LEVELS
        )
        self.head = Head(channels, conv="std", kernel_size=5)
        init_weights(self)
        self.head.start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        y = None
        for level, stages in zip(self.levels, LEVELS, strict=True):
            y = level([features[s] for s in stages], y)
        return resize_like(self.head(y), x)


@register_key_map(RefineNetMatting)
def published_keys(model: RefineNetMatting) -> KeyMap:
    """Key names of the published model for each of ours."""
    keys = encoder_key_map("encoder", "")
    for i, stages in enumerate(LEVELS):
        level, number = f"levels.{i}", len(LEVELS) - i
        for j, stage in enumerate(stages):
            keys |= conv_unit_keys(f"dconv{stage}", f"{level}.inputs.{j}")
        for j in range(POOLINGS):
            keys |= conv_unit_keys(f"dconv_crp{number}.0.{j + 1}_outvar_dimred", f"{level}.pooling.links.{j}.1")
        if number > 1:
            keys |= conv_unit_keys(f"dconv_adapt{number}", f"{level}.output")
    return keys | conv_unit_keys("pred.0", "head.reduce") | {"head.predict.weight": "pred.1.weight"}


@register_published_options("refinenet_matting")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's.

    The output stride leaves no trace in the weights: 32, that of B2, is assumed.
    """
    return {} if "dconv_crp4.0.1_outvar_dimred.0.weight" in state else None
