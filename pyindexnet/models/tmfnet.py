# SPDX-License-Identifier: Apache-2.0
"""TMFNet: ResNet-50 encoder, trimap-guided pooling, global-local fusion; its baseline and its ablations.

Paper: "Trimap-guided Feature Mining and Fusion Network for Natural Image Matting", Jiang et al. [TMFNet]. Written from the
paper and from arrays measured on the published network; no published code is included. Published weights load with
:func:`pyindexnet.models.load_checkpoint`; they stay under their own licence.

What we changed, with the same outputs: the four branches of TMP are one convolution and one pooling whose cost does not grow
with its windows; the fusion kernels are applied where they are, nothing is unfolded; any image size is accepted. The released
code groups neighbouring channels where Eq. 6 interleaves them, see ``group_order``; both are one network up to a permutation.

What neither the paper nor the released weights show (the baseline and ablations were not released): the static fusion has a
batch norm as GLF has, the atrous context is DeepLabv3's with one 3x3 convolution after it, CARAFE predicts its kernels by one
3x3 convolution without a channel compressor. Each gives the parameter count that the paper prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.checkpoints import (
    Columns,
    KeyMap,
    Permutation,
    Stack,
    conv_unit_keys,
    register_key_map,
    register_published_options,
)
from pyindexnet.models.registry import register_model
from pyindexnet.models.resnet import ResNet50, encoder_key_map
from pyindexnet.nn.arguments import require_one_of
from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.carafe import CARAFE
from pyindexnet.nn.context import KERNEL_SIZES, TMP, Leaky, PyramidPooling
from pyindexnet.nn.conv import ConvBNAct, init_weights
from pyindexnet.nn.fusion import GLF, GLOBAL_SOURCES, GROUP_ORDERS, CarafeFusion, StaticFusion

IMAGE_CHANNELS, TRIMAP_CHANNELS = 3, 3
CONTEXTS = ("tmp", "mp", "tp", "ppm", "aspp")
FUSIONS = ("glf", "lf", "static", "carafe")
CONTEXT = 256
BRANCH = 256
DILATIONS = (6, 12, 18)  # of DeepLabv3 at output stride 16
# of stages F1, F2, F3: channels within GLF, channels of the output
FUSED = ((256, 256), (256, 64), (32, 32))
GROUP = 16
HEAD = 16


@register_model("tmfnet")
class TMFNet(nn.Module):
    """TMFNet, 33,859,571 parameters, and the rows of [TMFNet] tables 3 and 5.

    Args:
        context: what follows the encoder. ``"tmp"``: trimap-guided non-background multi-scale pooling; ``"mp"``: the same
            without the trimap; ``"ppm"``: pyramid pooling; ``"tp"``: pyramid pooling of what is not background; ``"aspp"``:
            atrous spatial pyramid pooling.
        fusion: of all stages, or of F1, F2 and F3 one by one. ``"glf"``: global-local fusion; ``"lf"``: the same without the
            global feature; ``"static"``: bilinear upsampling and a convolution; ``"carafe"``: the same with CARAFE upsampling.
        global_source: of the global feature: ``"tmp"``: the output of the context module; ``"high"``: the high-level map of the
            stage ("B"); ``"c5"``: the encoder's last map ("C"); ``"none"`` makes every ``"glf"`` an ``"lf"``.
        group_order: of the channels in a GLF: ``"blocked"`` (released code) or ``"interleaved"`` (Eq. 6), the same network with
            channels permuted, see :class:`~pyindexnet.nn.GLF`.
        width: multiplier of all channel counts, a multiple of 1/8; 1 is the published network.
    Shape: (N, 6, H, W) -> (N, 1, H, W); RGB, normalised by the ImageNet statistics, then three maps that are 1 where the trimap
        says background, unknown and foreground, else 0. The published network takes multiples of 16; other sizes work: maps
        round up, and what is upsampled is cropped at the bottom and right. In training N must be at least 2 with ``"ppm"``,
        ``"tp"`` and ``"aspp"``.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    #: What :func:`pyindexnet.matting.predict_alpha` gives the network: sizes, the way to reach them, and the trimap's form.
    size_rule = (16, 0)
    alignment = "pad"
    trimap_encoding = "one_hot"

    def __init__(
        self,
        *,
        context: str = "tmp",
        fusion: str | Sequence[str] = "glf",
        global_source: str = "tmp",
        group_order: str = "blocked",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        name = "tmfnet"
        require_one_of(name, "context", context, CONTEXTS)
        require_one_of(name, "global_source", global_source, GLOBAL_SOURCES)
        require_one_of(name, "group_order", group_order, GROUP_ORDERS)
        kinds = (fusion,) * len(FUSED) if isinstance(fusion, str) else tuple(fusion) if isinstance(fusion, Sequence) else ()
        if len(kinds) != len(FUSED):
            raise ValueError(f"{name}: fusion must be one kind or {len(FUSED)}, got {fusion!r}")
        for kind in kinds:
            require_one_of(name, "fusion", kind, FUSIONS)
        if not isinstance(width, (int, float)) or width <= 0 or width * 8 % 1:
            raise ValueError(f"{name}: width must be a multiple of 1/8, got {width!r}")

        self.encoder = ResNet50(IMAGE_CHANNELS + TRIMAP_CHANNELS, width=width, output_stride=16)
        stem, c2, *_, c5 = self.encoder.channels
        self.context_kind, self.global_source = context, global_source
        branch, channels = int(BRANCH * width), int(CONTEXT * width)
        if context == "aspp":
            self.context: nn.Module = ASPP(
                c5, channels, hidden=branch, dilations=DILATIONS, separable=False, dropout=0.0, activation=Leaky
            )
            merged = [channels]
        else:
            masked = context in ("tmp", "tp")
            self.context = (TMP if context in ("tmp", "mp") else PyramidPooling)(c5, branch, masked=masked)
            merged = [self.context.out_channels, channels]
        self.context_merge = nn.Sequential(*(ConvBNAct(c, channels, 3, bias=True, activation=Leaky) for c in merged))

        self.stages = nn.ModuleList()
        self.shuffles = kinds[0] in ("glf", "lf")
        high = channels
        for i, (kind, low) in enumerate(zip(kinds, (c2, stem, IMAGE_CHANNELS + TRIMAP_CHANNELS), strict=True)):
            inter, out = (int(c * width) for c in FUSED[i])
            if kind in ("glf", "lf"):
                self.stages.append(
                    GLF(
                        high,
                        low,
                        inter,
                        out,
                        global_source=global_source if kind == "glf" else "none",
                        global_channels=c5 if global_source == "c5" else channels,
                        group_channels=int(GROUP * width),
                        group_order=group_order,
                    )
                )
            elif kind == "carafe":
                self.stages.append(CarafeFusion(high, low, out, steps=2 if i == 0 else 1))
            else:
                self.stages.append(StaticFusion(high, low, out))
            high = out
        hidden = int(HEAD * width)
        self.head = nn.Sequential(nn.Conv2d(high, hidden, 3, padding=1), Leaky(), nn.Conv2d(hidden, 1, 1))
        init_weights(self)
        for module in self.modules():
            if isinstance(module, (GLF, CARAFE)):
                module.init_kernels()

    def forward(self, x: Tensor) -> Tensor:
        stem, c2, *_, c5 = self.encoder(x)
        y = self.context_merge(self._context(x, c5))
        source: Tensor | None = {"tmp": y, "c5": c5}.get(self.global_source)
        if source is not None:
            source = source.mean((2, 3), keepdim=True)  # once for all stages
        if self.shuffles:  # a GLF takes a map of half the size, and F1 stands where the encoder leaves a quarter
            half = [-(-side // 2) for side in c2.shape[2:]]
            y = F.interpolate(y, size=half, mode="bilinear", align_corners=True)
        for stage, low in zip(self.stages, (c2, stem, x), strict=True):
            y = stage(y, low, source)
        return self.head(y)

    def _context(self, x: Tensor, c5: Tensor) -> Tensor:
        if self.context_kind == "aspp":
            return self.context(c5)
        known_or_unknown = x[:, IMAGE_CHANNELS + 1 :].sum(1, keepdim=True)  # not background
        mask = F.interpolate(known_or_unknown, size=c5.shape[2:], mode="bilinear", align_corners=False)
        return self.context(c5, mask)


@register_model("tmfnet_baseline")
class TMFNetBaseline(TMFNet):
    """The baseline of [TMFNet] section 3, 34.8 M parameters: pyramid pooling and static fusion.

    Options, shapes and errors are those of :class:`TMFNet`; only the defaults differ.
    """

    def __init__(
        self,
        *,
        context: str = "ppm",
        fusion: str | Sequence[str] = "static",
        global_source: str = "tmp",
        group_order: str = "blocked",
        width: float = 1.0,
    ) -> None:
        super().__init__(context=context, fusion=fusion, global_source=global_source, group_order=group_order, width=width)


@register_key_map(TMFNet)
def published_keys(model: TMFNet) -> KeyMap:
    """Key names of the published model for each of ours; only TMFNet itself was published."""
    if model.context_kind != "tmp" or not all(isinstance(s, GLF) and s.global_embedding is not None for s in model.stages):
        return {}
    keys = encoder_key_map("encoder", "encoder.pretrained")
    keys |= context_key_map("context", [f"decoder.ppm.{i}" for i in range(len(KERNEL_SIZES))])
    keys |= conv_unit_keys("decoder.conv_up1", "context_merge.0", "context_merge.1", bias=True)
    for i, path in enumerate(("conv_up2", "conv_up3", "conv_up4_1")):
        keys |= glf_key_map(f"stages.{i}", f"decoder.{path}", model.stages[i])
    heads = {"head.0": "decoder.conv_up4_2.0", "head.2": "decoder.conv_up4_2.2"}
    return keys | {f"{ours}.{leaf}": f"{name}.{leaf}" for ours, name in heads.items() for leaf in ("weight", "bias")}


def context_key_map(ours: str, published: Sequence[str]) -> KeyMap:
    """Key names of the published pooling branches, of these paths, for those of a :class:`TMP` called ``ours``."""
    each = [conv_unit_keys(f"{branch}.conv", f"{ours}.branches", bias=True) for branch in published]
    return {key: Columns(tuple(str(keys[key]) for keys in each), Stack(len(published))) for key in each[0]}


def glf_key_map(ours: str, published: str, module: nn.Module) -> KeyMap:
    """Key names of the published fusion for those of a :class:`GLF` called ``ours``, whose channels may be interleaved."""
    names = {"distribute": "reduce", "local_embedding": "conv1.0", "global_embedding": "embconv", "predict": "conv2"}
    keys: KeyMap = {f"{ours}.{o}.{leaf}": f"{published}.{p}.{leaf}" for o, p in names.items() for leaf in ("weight", "bias")}
    keys |= conv_unit_keys(f"{published}.out", f"{ours}.merge", bias=True)
    if isinstance(module, GLF) and module.group_order == "interleaved":
        # ours (k, g) is channel k * groups + g, theirs g * group_channels + k
        order = torch.arange(module.distribute.out_channels).view(module.groups, -1).t().flatten()
        for key, dim in (
            ("distribute.weight", 0),
            ("distribute.bias", 0),
            ("local_embedding.weight", 1),
            ("merge.conv.weight", 1),
        ):
            name = keys[f"{ours}.{key}"]
            keys[f"{ours}.{key}"] = Columns((str(name),), Permutation(order, dim))
    return keys


@register_published_options("tmfnet")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's."""
    return {"group_order": "blocked"} if "decoder.conv_up4_1.embconv.weight" in state else None
