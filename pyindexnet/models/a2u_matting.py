# SPDX-License-Identifier: Apache-2.0
"""A2U Matting: ResNet-34 encoder, affinity-aware down- and upsampling; its baselines and ablations.

Papers: "Learning Affinity-Aware Upsampling for Deep Image Matting", Dai, Lu, Shen, CVPR 2021 [A2U]; "Efficient Deep Networks
for Image Matting", Dai, 2022, chapter 4 [Thesis]. Written from the papers and from arrays measured on the published network; no
published code is included. Published weights load with :func:`pyindexnet.models.load_checkpoint`; they stay under their own
licence.

What we changed, with the same outputs: no kernel map is written, a batch is one call, any image size is accepted. Encodings
have 5 x 5 kernels, as in the paper; the released configuration has 6 x 6, which leaves no trace in its weights, so that
:func:`pyindexnet.models.model_from_checkpoint` chooses that.

What the paper and the released weights do not show: without paired downsampling the encoder is that of ResNet-34, with a
stride-2 stem, max pooling and stride-2 blocks, and upsampling is guided by the map that the decoder fuses. That gives every
parameter count of [Thesis] table 4.2, except that the dagger row's leaves out the 2,048 parameters of its group norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.checkpoints import (
    Columns,
    KeyMap,
    Stack,
    batch_norm_keys,
    conv_unit_keys,
    register_key_map,
    register_published_options,
)
from pyindexnet.models.indexnet_matting import ASPP_DILATIONS, aspp_key_map
from pyindexnet.models.registry import register_model
from pyindexnet.nn.affinity import SCALE, SLOPE, UP_KERNEL_SIZES, VARIANTS, AffinityUpDown, AffinityUpsample
from pyindexnet.nn.arguments import require_one_of
from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.carafe import CARAFE
from pyindexnet.nn.conv import ConvBNAct, init_weights
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork
from pyindexnet.nn.inplace_abn import convert_inplace_abn
from pyindexnet.nn.resampling import Guide
from pyindexnet.ops.indexed_upsample import indexed_upsample

UPSAMPLINGS = ("a2u", "nearest", "bilinear", "carafe", "indexnet")
NORMS = ("inplace_abn", "batch_norm")
Leaky = partial(nn.LeakyReLU, SLOPE, inplace=True)
# of the maps that the decoder upsamples and fuses, at full, half, quarter and eighth size
CHANNELS = (64, 64, 128, 256)
# of the encoder's three stages, the first at a quarter of the size, each next one at half the size of the one before
STAGES = ((64, 3), (128, 4), (256, 4))
DECODED = (32, 64, 64, 128)  # output of the decoder at each of the sizes of CHANNELS
NORM_GROUPS = 32
RELEASED_ENCODER_KERNEL_SIZE = 6


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a residual; the sum goes through the last Leaky ReLU.

    Args:
        in_channels: of the input.
        channels: of the output; where it differs, or the size does, the shortcut is a 1x1 convolution.
        stride: 1 or 2, of the first convolution.
        resampling: downsamples by 2 between the convolutions instead.
    Shape: (N, in_channels, H, W) -> (N, channels, ceil(H / 2), ceil(W / 2)), or H and W at stride 1 without ``resampling``; the
        guide for upsampling, None without.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, resampling: AffinityUpDown | None = None) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(in_channels, channels, 3, stride=stride, activation=Leaky)
        self.resampling = resampling
        self.conv2 = ConvBNAct(channels, channels, 3, activation=None)
        self.shortcut = None
        if resampling is not None:
            stride = 2
        if stride != 1 or in_channels != channels:
            self.shortcut = ConvBNAct(in_channels, channels, 1, stride=stride, activation=None)
        self.act: nn.Module = Leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Guide | None]:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x, guide = self.conv1(x), None
        if self.resampling is not None:
            x, _, guide = self.resampling.reduce(x, keep=False)
        return self.act(self.conv2(x, shortcut)), guide

    def join_activation(self) -> None:
        """Make the last activation that of the convolution before the sum: the same function, ready to be fused."""
        if isinstance(self.conv2.act, nn.Identity):
            self.conv2.act, self.act = self.act, nn.Identity()


class Upsampling(nn.Module):
    """Upsampling by 2 that is not the pair of a downsampling.

    Shape: y (N, C, h, w) and the map that will be fused, (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.carafe = CARAFE(channels) if kind == "carafe" else None
        self.network = DepthwiseIndexNetwork(channels) if kind == "indexnet" else None

    def forward(self, y: Tensor, skip: Tensor) -> Tensor:
        size = skip.shape[2], skip.shape[3]
        if self.carafe is not None:
            return self.carafe(y, size)
        if self.network is not None:
            return indexed_upsample(y, self.network(skip), output_size=size)
        return F.interpolate(y, size, mode=self.kind, align_corners=False if self.kind == "bilinear" else None)


@register_model("a2u_matting")
class A2UMatting(nn.Module):
    """A2U Matting, 8,089,235 parameters (8,269,451 with ``shared=False``), and the rows of [Thesis] tables 4.2 to 4.4.

    Args:
        upsample: ``"a2u"``; ``"nearest"``, ``"bilinear"``; ``"carafe"``; ``"indexnet"``: many-to-one index networks, nonlinear
            and with context, on the maps that the decoder fuses.
        variant: ``"static"``, ``"hybrid"`` or ``"dynamic"``, see :mod:`pyindexnet.nn.affinity`.
        shared: encodings are shared by all channels ("cs"), else each channel has its own ("cw").
        position_wise: each pixel of a cell has encodings of its own ("pw").
        downsample: affinity-aware downsampling in the encoder, the pair of the upsampling ("d").
        normalize: group norm and Leaky ReLU on the encodings (the dagger).
        rank: d of the affinity.
        kernel_size: side of the upsampling kernels, 1, 3, 5 or 7; downsampling kernels have twice that.
        encoder_kernel_size: side of the encodings' kernels, 1 to 14: 5 as in the paper, 6 as released.
        groups: sets of channels with kernels of their own; divides 64 ``width``.
        normalization: of the upsampling kernels, one of NORMALIZATIONS.
        group_layout: ``"position_major"``: what released weights of several groups need, see :class:`AffinityUpsample`.
        norm: ``"inplace_abn"``: in-place activated batch norm, gamma = abs(weight) + eps, as every published version has it;
            ``"batch_norm"``: the ordinary one.
        width: multiplier of all channel counts, a multiple of 1/32.

    ``variant`` to ``group_layout`` have no effect where ``upsample`` is not ``"a2u"``.

    Shape: (N, 4, H, W) -> (N, 1, H, W); channels RGB, normalised by the ImageNet statistics, then the trimap / 255. The
        published network takes multiples of 16; other sizes work: maps round up, and what is upsampled has the size of what it
        is fused with. In training N must be at least 2: the mean branch of the ASPP gives one value per image and channel.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    #: What :func:`pyindexnet.matting.predict_alpha` gives the network.
    size_rule = (16, 0)
    alignment = "pad"

    def __init__(
        self,
        *,
        upsample: str = "a2u",
        variant: str = "dynamic",
        shared: bool = True,
        position_wise: bool = False,
        downsample: bool = True,
        normalize: bool = True,
        rank: int = 1,
        kernel_size: int = 3,
        encoder_kernel_size: int = 5,
        groups: int = 1,
        normalization: str = "sigmoid_softmax",
        group_layout: str = "group_major",
        norm: str = "inplace_abn",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        name = "a2u_matting"
        for option, value, allowed in (
            ("upsample", upsample, UPSAMPLINGS),
            ("variant", variant, VARIANTS),
            ("shared", shared, (False, True)),
            ("position_wise", position_wise, (False, True)),
            ("downsample", downsample, (False, True)),
            ("normalize", normalize, (False, True)),
            ("norm", norm, NORMS),
        ):
            require_one_of(name, option, value, allowed)
        if not isinstance(width, (int, float)) or width <= 0 or width * 32 % 1:
            raise ValueError(f"{name}: width must be a multiple of 1/32, got {width!r}")

        def scaled(channels: int) -> int:
            return int(channels * width)

        channels = [scaled(c) for c in CHANNELS]
        if upsample == "a2u" and (not isinstance(groups, int) or groups < 1 or any(c % groups for c in channels)):
            raise ValueError(f"{name}: groups must divide the channels of the maps {tuple(channels)}, got {groups!r}")
        affinity = partial(
            AffinityUpDown if downsample else AffinityUpsample,
            variant=variant,
            shared=shared,
            position_wise=position_wise,
            normalize=normalize,
            rank=rank,
            kernel_size=kernel_size,
            encoder_kernel_size=encoder_kernel_size,
            groups=groups,
            normalization=normalization,
            norm_groups=scaled(NORM_GROUPS),
            group_layout=group_layout,
        )
        upsampling = affinity if upsample == "a2u" else partial(Upsampling, kind=upsample)
        self.paired = downsample and upsample == "a2u"
        #: at full, half, quarter and eighth size; the encoder's blocks hold the last two where downsampling is paired
        resampling = [upsampling(c) for c in channels]

        stem = STAGES[0][0]
        self.stem = ConvBNAct(4, scaled(stem), 7, stride=1 if self.paired else 2, activation=Leaky)
        self.pool = None if self.paired else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        before = scaled(stem)
        for i, (base, blocks) in enumerate(STAGES):
            stage = nn.ModuleList()
            for b in range(blocks):
                reduces = i > 0 and b == 0
                pair = cast(AffinityUpDown, resampling[i + 1]) if reduces and self.paired else None
                stride = 2 if reduces and not self.paired else 1
                stage.append(BasicBlock(before, scaled(base), stride=stride, resampling=pair))
                before = scaled(base)
            self.stages.append(stage)
        self.resampling = nn.ModuleList(resampling[:2] if self.paired else resampling)
        self.context = ASPP(before, before, hidden=before, dilations=ASPP_DILATIONS[16], activation=Leaky)
        fused = (4, scaled(stem), *(scaled(base) for base, _ in STAGES[:-1]))
        self.skips = nn.ModuleList(ConvBNAct(f, c, 3, activation=Leaky) for f, c in zip(fused, channels, strict=True))
        self.decoder = nn.ModuleList()
        for c, out in zip(channels, DECODED, strict=True):
            self.decoder.append(nn.ModuleList((BasicBlock(c, scaled(out)), BasicBlock(scaled(out), scaled(out)))))
        self.head = nn.Sequential(
            ConvBNAct(scaled(DECODED[0]), 1, 3, activation=Leaky), nn.Conv2d(1, 1, 3, padding=1, bias=False)
        )
        init_weights(self)
        for module in self.modules():
            if isinstance(module, (AffinityUpsample, CARAFE)):
                module.init_kernels()
        if norm == "inplace_abn":
            convert_inplace_abn(self, weight_form="positive")

    @property
    def encoder(self) -> nn.ModuleList:
        """The part with pretrained weights, whose batch norms [A2U] fixes."""
        return nn.ModuleList((self.stem, *self.stages))

    def forward(self, x: Tensor) -> Tensor:
        maps, guides = self._encoded(x)
        y = self.context(maps.pop())
        for i in reversed(range(len(self.decoder))):
            skip = self.skips[i](maps[i])
            if self.paired:
                y = self._pair(i).restore(y, guides[i])
            else:
                y = self.resampling[i](y, skip)
            y = y + skip
            for block in cast(nn.ModuleList, self.decoder[i]):
                y, _ = block(y)
        return self.head(y)

    def _encoded(self, x: Tensor) -> tuple[list[Tensor], list[Guide]]:
        """Maps at full size, half, ..., a sixteenth, and the guides to upsample to each size but the last."""
        maps, guides = [x], []
        x = self.stem(x)
        if self.pool is not None:
            maps.append(x)
            x = self.pool(x)
        else:
            for i in range(2):
                x, _, guide = self._pair(i).reduce(x, keep=False)
                guides.append(guide)
                if i == 0:
                    maps.append(x)
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage):
                x, guide = block(x)
                if guide is not None:
                    guides.append(guide)
            maps.append(x)
        return maps, guides

    def _pair(self, i: int) -> AffinityUpDown:
        if i < len(self.resampling):
            return cast(AffinityUpDown, self.resampling[i])
        stage = cast(nn.ModuleList, self.stages[i - 1])
        return cast(AffinityUpDown, cast(BasicBlock, stage[0]).resampling)


@register_key_map(A2UMatting)
def published_keys(model: A2UMatting) -> KeyMap:
    """Key names of the published model for each of ours; only paired, normalised, dynamic A2U was published."""
    if not model.paired:
        return {}
    keys = conv_unit_keys("layer0", "stem")
    for i in range(2):
        keys |= affinity_key_map(f"resampling.{i}", f"bilinear{i}")
    for s, (_, blocks) in enumerate(STAGES):
        first = 0
        if s > 0:
            keys |= reducing_block_keys(f"stages.{s}.0", f"layer{s + 1}_1")
            first = 1
        layer = f"layer{s + 1}_2" if s > 0 else "layer1"
        for b in range(first, blocks):
            keys |= _block_keys(f"stages.{s}.{b}", f"{layer}.block{b + 1 - first}.convs")
    keys |= aspp_key_map("context", "dconv_pp", step=2)
    for i in range(len(CHANNELS)):
        keys |= conv_unit_keys(f"short{i}", f"skips.{i}")
        for b, name in enumerate(("dconv", "dconv1")):
            block = cast(BasicBlock, cast(nn.ModuleList, model.decoder[i])[b])
            keys |= decoder_block_keys(f"decoder.{i}.{b}", f"decoder_layer{i + 1}.{name}", block)
    keys |= conv_unit_keys("pred.0", "head.0")
    return keys | {"head.1.weight": "pred.1.weight"}


def affinity_key_map(ours: str, published: str) -> KeyMap:
    """Key names of the published module for those of a dynamic, normalised :class:`AffinityUpDown` called ``ours``."""
    keys: KeyMap = {}
    for name, columns in (("encode", ("bconv_U.1", "bconv_V.1")), ("generate", ("bconv_UP.1", "bconv_DP.1"))):
        for leaf in ("weight", "bias"):
            keys[f"{ours}.{name}.{leaf}"] = Columns(tuple(f"{published}.{c}.{leaf}" for c in columns), Stack(2))
    for leaf in ("weight", "bias"):
        keys[f"{ours}.norm_{leaf}"] = Columns(tuple(f"{published}.{c}.0.{leaf}" for c in ("bnu", "bnv")), Stack(2))
    return keys


def _unit_keys(ours: str, conv: str, norm: str) -> KeyMap:
    return {f"{ours}.conv.weight": f"{conv}.weight"} | batch_norm_keys(f"{ours}.bn", norm)


def _block_keys(ours: str, published: str) -> KeyMap:
    keys: KeyMap = {}
    for i in (1, 2):
        keys |= _unit_keys(f"{ours}.conv{i}", f"{published}.conv{i}", f"{published}.bn{i}")
    return keys


def _shortcut_keys(ours: str, published: str) -> KeyMap:
    return _unit_keys(f"{ours}.shortcut", f"{published}.proj_conv", f"{published}.proj_bn")


def decoder_block_keys(ours: str, published: str, block: BasicBlock) -> KeyMap:
    """Key names of the published module for those of a block of the decoder, called ``ours``."""
    shortcut = {} if block.shortcut is None else _shortcut_keys(ours, published)
    return _block_keys(ours, f"{published}.dep_sep_conv") | shortcut


def reducing_block_keys(ours: str, published: str) -> KeyMap:
    """Key names of the published module for those of a block that downsamples in a pair, called ``ours``."""
    keys = _shortcut_keys(ours, published) | affinity_key_map(f"{ours}.resampling", f"{published}.bilinear")
    for i in (1, 2):
        keys |= _unit_keys(f"{ours}.conv{i}", f"{published}.layer{i}.conv{i}", f"{published}.layer{i}.bn{i}")
    return keys


@register_published_options("a2u_matting")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's.

    A weight shows the product of groups and taps alone: the largest kernel is taken that it allows.
    """
    encoder, generator = state.get("bilinear0.bconv_U.1.weight"), state.get("bilinear0.bconv_UP.1.weight")
    if encoder is None or generator is None:
        return None
    taps = generator.shape[0] // SCALE**2
    side = max(k for k in UP_KERNEL_SIZES if taps % k**2 == 0)
    return {
        "width": encoder.shape[1] / STAGES[0][0],
        "shared": encoder.shape[0] == 1,
        "kernel_size": side,
        "groups": taps // side**2,
        "encoder_kernel_size": RELEASED_ENCODER_KERNEL_SIZE,
        "group_layout": "position_major",
    }
