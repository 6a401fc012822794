# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2 encoder for image matting.

Paper: "MobileNetV2: Inverted Residuals and Linear Bottlenecks", Sandler et al., CVPR 2018, as modified for matting in
[IndexNet] section 5.1. Written from the papers and from arrays measured on the published models; no published code is
included. Weights converted from the published ones stay under their own licence (non-commercial for IndexNet Matting).

What differs from the classification network:
- four input channels (RGB and trimap), no classifier and no last 1x1 convolution;
- a block zero-pads its *input*, before the expansion: the depthwise convolution therefore sees ReLU6(BN(0)) outside the
  image, not 0. That is a 1x1 convolution with padding, which is how it is written here;
- ``downsample="pool"`` leaves every convolution at stride 1, for models that pool after a stage;
- output strides 16 and 8 replace the last reductions by dilation.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, conv_unit_keys
from pyindexnet.nn.arguments import require_one_of
from pyindexnet.nn.conv import ConvBNAct, init_weights

# expansion, channels, blocks, reduction of stages 1 to 7; stage 0 is the stem
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
OUTPUT_STRIDES = (8, 16, 32)


class InvertedResidual(nn.Module):
    """Expansion (1x1), depthwise 3x3, linear projection (1x1), residual where the shapes agree.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        # the padding belongs to the block's input: see the head of this file
        self.expand = ConvBNAct(in_channels, hidden, 1, padding=dilation) if expansion != 1 else None
        self.depthwise = ConvBNAct(
            hidden,
            hidden,
            3,
            stride=stride,
            padding=dilation if self.expand is None else 0,
            dilation=dilation,
            groups=hidden,
        )
        self.project = ConvBNAct(hidden, out_channels, 1, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        return self.project(self.depthwise(y), x if self.residual else None)


class MobileNetV2(nn.Module):
    """MobileNetV2 features, eight stages.

    Args:
        in_channels: 4 for RGB and trimap.
        width: multiplier of all channel counts, rounded down as the published matting models do.
        output_stride: 32, 16 or 8: product of the reductions that remain.
        downsample: ``"stride"``: convolutions reduce, as in the original network; ``"pool"``: every convolution keeps
            the size, and the caller halves the map after each stage ``i`` with ``reductions[i] == 2``.
    Attributes:
        stages: ModuleList of 8; ``stages[0]`` is the stem.
        channels: output channels of each stage.
        reductions: 1 or 2 for each stage.
    Shape: (N, in_channels, H, W) -> list of eight maps; with ``"stride"`` a stage maps H to ceil(H/2) where it reduces.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        in_channels: int = 4,
        *,
        width: float = 1.0,
        output_stride: int = 32,
        downsample: str = "stride",
    ) -> None:
        super().__init__()
        require_one_of("MobileNetV2", "output_stride", output_stride, OUTPUT_STRIDES)
        require_one_of("MobileNetV2", "downsample", downsample, ("stride", "pool"))
        if not isinstance(width, (int, float)) or not 1 / 16 <= width < math.inf:
            raise ValueError(f"MobileNetV2: width must be a number of at least 1/16, got {width!r}")

        self.output_stride = output_stride
        strided = downsample == "stride"
        channels = int(32 * width)
        self.stages = nn.ModuleList([ConvBNAct(in_channels, channels, 3, stride=2 if strided else 1)])
        self.channels = [channels]
        self.reductions = [2]
        reached, dilation = 2, 1
        for expansion, base, blocks, reduction in STAGES:
            out = int(base * width)
            before = dilation
            if reached * reduction > output_stride:
                dilation *= reduction
                reduction = 1
            reached *= reduction
            stage = nn.Sequential()
            for b in range(blocks):
                stage.append(
                    InvertedResidual(
                        channels,
                        out,
                        expansion=expansion,
                        stride=reduction if strided and b == 0 else 1,
                        # a stage that keeps its size in place of a reduction dilates from its second block on
                        dilation=before if b == 0 else dilation,
                    )
                )
                channels = out
            self.stages.append(stage)
            self.channels.append(out)
            self.reductions.append(reduction)
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def encoder_key_map(ours: str, published: str) -> KeyMap:
    """Key names of the published encoders for those of a :class:`MobileNetV2` called ``ours``.

    Args:
        ours: path of the encoder in the model.
        published: what the published keys start with, ``""`` for IndexNet Matting.
    """
    keys: KeyMap = conv_unit_keys(f"{published}layer0", f"{ours}.stages.0")
    for s, (expansion, _, blocks, _) in enumerate(STAGES, start=1):
        units = ("depthwise", "project") if expansion == 1 else ("expand", "depthwise", "project")
        for b in range(blocks):
            block = f"{ours}.stages.{s}.{b}"
            keys |= conv_unit_keys(f"{published}layer{s}.{b}.conv", *(f"{block}.{unit}" for unit in units))
    return keys
