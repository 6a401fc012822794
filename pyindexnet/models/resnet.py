# SPDX-License-Identifier: Apache-2.0
"""ResNet-50 encoder with a deep stem, for image matting.

Paper: "Deep Residual Learning for Image Recognition", He et al., CVPR 2016, as modified for matting in [TMFNet] section 3.
Written from the papers and from arrays measured on the published network; no published code is included. Weights converted
from the published ones stay under their own licence.

What differs from the classification network:
- the 7x7 convolution of the stem is three of 3x3 (64, 64, 128 channels), the first at stride 2;
- a bottleneck reduces in its 3x3 convolution, its shortcut in a strided 1x1 convolution;
- output strides 16 and 8 replace the last reductions by dilation, which sets in at the second block of the stage;
- any number of input channels, no classifier.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, batch_norm_keys
from pyindexnet.nn.arguments import require_one_of
from pyindexnet.nn.conv import ConvBNAct, init_weights

STEM = (64, 64, 128)
# bottleneck channels, blocks, reduction; the output has EXPANSION times as many channels
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
EXPANSION = 4
OUTPUT_STRIDES = (8, 16, 32)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided or dilated) and 1x1 convolution around a residual; the sum goes through the last ReLU.

    Shape: (N, in_channels, H, W) -> (N, out_channels, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.reduce = ConvBNAct(in_channels, channels, 1, activation=nn.ReLU)
        self.conv = ConvBNAct(channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, activation=nn.ReLU)
        self.expand = ConvBNAct(channels, out_channels, 1, activation=None)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvBNAct(in_channels, out_channels, 1, stride=stride, activation=None)
        self.act: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.act(self.expand(self.conv(self.reduce(x)), shortcut))

    def join_activation(self) -> None:
        """Make the last activation that of the convolution before the sum: the same function, ready to be fused."""
        if isinstance(self.expand.act, nn.Identity):
            self.expand.act, self.act = self.act, nn.Identity()


class ResNet50(nn.Module):
    """ResNet-50 features: the stem and four stages.

    Args:
        in_channels: of the input; 6 for RGB and a one-hot trimap.
        width: multiplier of all channel counts, rounded down.
        output_stride: 32, 16 or 8: product of the reductions that remain.
    Attributes:
        channels: output channels of the stem and of each stage.
    Shape: (N, in_channels, H, W) -> five maps: the stem's at half the size, C2 at a quarter, C3, C4 and C5. Each reduction
        rounds up.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(self, in_channels: int = 3, *, width: float = 1.0, output_stride: int = 32) -> None:
        super().__init__()
        require_one_of("ResNet50", "output_stride", output_stride, OUTPUT_STRIDES)
        if not isinstance(width, (int, float)) or not 1 / 64 <= width < math.inf:
            raise ValueError(f"ResNet50: width must be a number of at least 1/64, got {width!r}")
        self.stem = nn.Sequential()
        channels = in_channels
        for i, base in enumerate(STEM):
            out = int(base * width)
            self.stem.append(ConvBNAct(channels, out, 3, stride=2 if i == 0 else 1, activation=nn.ReLU))
            channels = out
        self.channels = [channels]
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        reached, dilation = 4, 1
        for base, blocks, reduction in STAGES:
            hidden = int(base * width)
            before = dilation
            if reached * reduction > output_stride:
                dilation *= reduction
                reduction = 1
            reached *= reduction
            stage = nn.Sequential()
            for b in range(blocks):
                stride, spread = (reduction, before) if b == 0 else (1, dilation)
                stage.append(Bottleneck(channels, hidden, EXPANSION * hidden, stride=stride, dilation=spread))
                channels = EXPANSION * hidden
            self.stages.append(stage)
            self.channels.append(channels)
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def encoder_key_map(ours: str, published: str) -> KeyMap:
    """Key names of the published encoder for those of a :class:`ResNet50` called ``ours``.

    Args:
        ours: path of the encoder in the model.
        published: path of the published encoder.
    """

    def unit(path: str, conv: str, norm: str) -> KeyMap:
        own = f"{ours}.{path}"
        return {f"{own}.conv.weight": f"{published}.{conv}.weight"} | batch_norm_keys(f"{own}.bn", f"{published}.{norm}")

    keys: KeyMap = {}
    for i, (conv, norm) in enumerate((("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))):
        keys |= unit(f"stem.{i}", conv, norm)
    for s, (_, blocks, _) in enumerate(STAGES):
        for b in range(blocks):
            block, theirs = f"stages.{s}.{b}", f"layer{s + 1}.{b}"
            for i, name in enumerate(("reduce", "conv", "expand"), start=1):
                keys |= unit(f"{block}.{name}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if b == 0:  # every stage changes its width there
                keys |= unit(f"{block}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return keys
