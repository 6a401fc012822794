# SPDX-License-Identifier: Apache-2.0
"""IndexNet Matting: MobileNetV2 encoder-decoder with learned, fixed or no indices.

Papers: "Indices Matter: Learning to Index for Deep Image Matting", Lu et al., ICCV 2019 [IndexNet]; "Efficient Deep Networks
for Image Matting", Dai, 2022, chapter 3 [Thesis]. Written from the papers and from arrays measured on the published models;
no published code is included. Published weights load with :func:`pyindexnet.models.load_checkpoint`; they stay under their
own licence, which is for non-commercial use.

What we changed, with the same outputs: the four columns of a depthwise index network are one convolution, indices are
normalised inside the pooling and upsampling operators and never written to memory, and any image size is accepted. Where
the papers and the released code differ (hidden width of the index networks), the paper is the default: ``index_width``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyindexnet.models.checkpoints import (
    Columns,
    KeyMap,
    conv_unit_keys,
    register_key_map,
    register_published_options,
)
from pyindexnet.models.mobilenetv2 import OUTPUT_STRIDES, MobileNetV2, encoder_key_map
from pyindexnet.models.registry import register_model
from pyindexnet.nn.arguments import require_count, require_one_of
from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.conv import ConvBNAct, DepthwiseSeparable, init_weights
from pyindexnet.nn.fused_conv import FusedConv
from pyindexnet.nn.index_networks import (
    DEPTHWISE_FAMILIES,
    WIDTHS,
    DepthwiseIndexNetwork,
    HolisticIndexNetwork,
    HolisticMaxIndex,
)
from pyindexnet.nn.resampling import (
    BilinearUpsampling,
    CarafeUpsampling,
    Guide,
    IndexedResampling,
    MaxUnpooling,
    Resampling,
)
from pyindexnet.reference import NORMALIZATIONS

INDEX_NETWORKS = ("hin", *DEPTHWISE_FAMILIES, "max", "hmi", "carafe", "bilinear")
DECODERS = ("unet", "skip", "none")
DECODER_CONVS = ("std", "depsep")
# of the three atrous branches, for each output stride; 8 as DeepLab has it, the published models use 32 and 16
ASPP_DILATIONS = {32: (2, 4, 8), 16: (6, 12, 18), 8: (12, 24, 36)}
PUBLISHED_WIDTHS = (1.0, 1.4)


class DecoderStage(nn.Module):
    """Fuses the encoder map of a stage and convolves.

    Shape: y (N, C, H, W) and skip (N, C, H, W) -> (N, out_channels, H, W).
    """

    def __init__(self, channels: int, out_channels: int, *, fusion: str, conv: str, kernel_size: int) -> None:
        super().__init__()
        self.fusion = fusion
        in_channels = 2 * channels if fusion == "unet" else channels
        self.conv = _decoder_conv(conv, in_channels, out_channels, kernel_size)

    def forward(self, y: Tensor, skip: Tensor) -> Tensor:
        if self.fusion == "unet":
            if isinstance(self.conv, FusedConv):
                return self.conv(y, more=skip)
            y = torch.cat((y, skip), 1)
        elif self.fusion == "skip":
            y = y + skip
        return self.conv(y)


class Head(nn.Module):
    """Alpha from the last decoder map: convolution to one channel, batch norm, ReLU6, convolution without bias."""

    def __init__(self, channels: int, *, conv: str, kernel_size: int) -> None:
        super().__init__()
        self.reduce = _decoder_conv(conv, channels, 1, kernel_size)
        self.predict = nn.Conv2d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Let alpha be the one channel, spread about 1/2. With random signs the last kernel, which has no bias, starts as an
        edge detector whose mean may be negative, and training from random weights stays at alpha = 0 for hundreds of steps.
        """
        nn.init.dirac_(self.predict.weight)
        norm = next(m for m in reversed(list(self.reduce.modules())) if isinstance(m, nn.BatchNorm2d))
        norm.weight.fill_(0.5)
        norm.bias.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.reduce(x))


@register_model("indexnet_matting")
class IndexNetMatting(nn.Module):
    """IndexNet Matting and the MobileNetV2 baselines B5 to B11 of [IndexNet] table 1.

    Args:
        index_network: ``"hin"``, ``"o2o_modelwise"``, ``"o2o_stagewise"``, ``"o2o"``, ``"m2o"``: learned indices, see
            :mod:`pyindexnet.nn.index_networks`; ``"max"``: max pooling and unpooling; ``"hmi"``: holistic max index, used by
            pooling and upsampling; ``"carafe"``: max pooling and CARAFE upsampling; ``"bilinear"``: max pooling and bilinear
            upsampling.
        nonlinear: hidden layer in the index networks.
        context: weak context, 4x4 kernels, in the index networks.
        index_width: hidden channels of a depthwise index network's column over C: 2 as in the papers, 1 as released.
        output_stride: 32, 16 or 8; the last reductions become dilation.
        aspp: atrous spatial pyramid pooling between encoder and decoder; else a 1x1 convolution.
        decoder: ``"unet"`` concatenates the encoder maps, ``"skip"`` adds them, ``"none"`` uses the indices alone.
        decoder_conv: ``"std"`` or ``"depsep"`` (depthwise then 1x1).
        width: multiplier of all channel counts.
        decoder_kernel_size: odd side of the decoder's kernels.
        encoder_normalization: of the indices for pooling, one of NORMALIZATIONS ([Thesis] table 3.5).
        decoder_normalization: the same for upsampling.

    ``nonlinear``, ``context``, ``index_width`` and the normalisations have no effect where indices are not learned.

    Shape: (N, 4, H, W) -> (N, 1, H, W); channels RGB, normalised by the ImageNet statistics, then the trimap / 255. The
        published models are used at multiples of 32, where all cells are whole; other sizes work, with smaller cells at the
        bottom and right border.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        *,
        index_network: str = "m2o",
        nonlinear: bool = True,
        context: bool = True,
        index_width: int = 2,
        output_stride: int = 32,
        aspp: bool = True,
        decoder: str = "unet",
        decoder_conv: str = "std",
        width: float = 1.0,
        decoder_kernel_size: int = 5,
        encoder_normalization: str = "sigmoid_softmax",
        decoder_normalization: str = "sigmoid",
    ) -> None:
        super().__init__()
        for option, value, allowed in (
            ("index_network", index_network, INDEX_NETWORKS),
            ("nonlinear", nonlinear, (False, True)),
            ("context", context, (False, True)),
            ("index_width", index_width, WIDTHS),
            ("output_stride", output_stride, OUTPUT_STRIDES),
            ("aspp", aspp, (False, True)),
            ("decoder", decoder, DECODERS),
            ("decoder_conv", decoder_conv, DECODER_CONVS),
            ("encoder_normalization", encoder_normalization, NORMALIZATIONS),
            ("decoder_normalization", decoder_normalization, NORMALIZATIONS),
        ):
            require_one_of("indexnet_matting", option, value, allowed)
        require_count("indexnet_matting", "decoder_kernel_size", decoder_kernel_size, odd=True)

        self.decoder_fuses = decoder != "none"
        self.encoder = MobileNetV2(4, width=width, output_stride=output_stride, downsample="pool")
        channels = self.encoder.channels
        if aspp:
            dilations = ASPP_DILATIONS[output_stride]
            self.context: nn.Module = ASPP(channels[7], channels[6], hidden=int(256 * width), dilations=dilations)
        else:
            self.context = ConvBNAct(channels[7], channels[6], 1)
        self.decoder = nn.ModuleList(
            DecoderStage(
                channels[i],
                channels[max(i - 1, 0)],
                fusion=decoder,
                conv=decoder_conv,
                kernel_size=decoder_kernel_size,
            )
            for i in range(7)
        )
        self.head = Head(channels[0], conv=decoder_conv, kernel_size=decoder_kernel_size)
        init_weights(self)
        self.head.start_as_identity()

        def resampling(channels: int) -> Resampling:
            if index_network == "max":
                return MaxUnpooling()
            if index_network == "bilinear":
                return BilinearUpsampling()
            if index_network == "carafe":
                return CarafeUpsampling(channels)
            if index_network == "hmi":
                return IndexedResampling(HolisticMaxIndex(), encoder="none", decoder="none", keep_raw=True)
            if index_network == "hin":
                network: nn.Module = HolisticIndexNetwork(channels, nonlinear=nonlinear, context=context)
            else:
                network = DepthwiseIndexNetwork(
                    channels, index_network, nonlinear=nonlinear, context=context, width=index_width
                )
            return IndexedResampling(network, encoder=encoder_normalization, decoder=decoder_normalization)

        # by stage; the modelwise network is held once, so that it is saved and counted once
        self.resampling = nn.ModuleDict()
        if index_network == "o2o_modelwise":
            self.resampling["all"] = resampling(1)
        else:
            for i, reduction in enumerate(self.encoder.reductions):
                if reduction == 2:
                    self.resampling[str(i)] = resampling(channels[i])

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        guides: list[Guide | None] = []
        for i, stage in enumerate(self.encoder.stages):
            x = skip = stage(x)
            guide: Guide | None = None
            if self.encoder.reductions[i] == 2:
                x, skip, guide = self._resampling(i).reduce(x, keep=self.decoder_fuses)
            skips.append(skip)
            guides.append(guide)
        x = self.context(x)
        for i in reversed(range(len(self.decoder))):
            if (guide := guides[i]) is not None:
                x = self._resampling(i).restore(x, guide)
            x = self.decoder[i](x, skips[i])
        return self.head(x)

    def _resampling(self, stage: int) -> Resampling:
        return cast(Resampling, self.resampling["all" if "all" in self.resampling else str(stage)])


def _decoder_conv(kind: str, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    if kind == "depsep":
        return DepthwiseSeparable(in_channels, out_channels, kernel_size)
    return ConvBNAct(in_channels, out_channels, kernel_size)


@register_key_map(IndexNetMatting)
def published_keys(model: IndexNetMatting) -> KeyMap:
    """Key names of the published models for each of ours."""
    keys = encoder_key_map("encoder", "")
    if isinstance(model.context, ASPP):
        keys |= aspp_key_map("context", "dconv_pp")
    else:
        keys |= conv_unit_keys("dconv_pp", "context")
    for i, stage in enumerate(cast("list[DecoderStage]", model.decoder)):
        keys |= conv_unit_keys(f"decoder_layer{i}.dconv", *_units(f"decoder.{i}.conv", stage.conv))
    keys |= conv_unit_keys("pred.0", *_units("head.reduce", model.head.reduce))
    keys["head.predict.weight"] = "pred.1.weight"
    for name, resampling in model.resampling.items():
        if isinstance(resampling, IndexedResampling):
            keys |= index_network_key_map(f"resampling.{name}.network", f"index{name}", resampling.network)
    return keys


def aspp_key_map(ours: str, published: str, step: int = 3) -> KeyMap:
    """Key names of the published ASPP for those of an :class:`ASPP` called ``ours``; ``step``: see :func:`conv_unit_keys`."""
    keys: KeyMap = conv_unit_keys(f"{published}.aspp1.atrous_conv", f"{ours}.point")
    for i in range(3):
        units = (f"{ours}.atrous.{i}.{unit}" for unit in ("depthwise", "pointwise"))
        keys |= conv_unit_keys(f"{published}.aspp{i + 2}.atrous_conv", *units, step=step)
    keys |= conv_unit_keys(f"{published}.global_avg_pool", f"{ours}.image", first=1)
    return keys | conv_unit_keys(f"{published}.bottleneck_conv", f"{ours}.merge")


def _units(path: str, conv: nn.Module) -> list[str]:
    return [f"{path}.depthwise", f"{path}.pointwise"] if isinstance(conv, DepthwiseSeparable) else [path]


def index_network_key_map(ours: str, published: str, network: nn.Module) -> KeyMap:
    """Key names of the published index blocks for those of an index network called ``ours``."""
    if isinstance(network, HolisticIndexNetwork):
        if network.hidden is None:
            return {f"{ours}.predict.weight": f"{published}.indexnet.weight"}
        hidden = conv_unit_keys(f"{published}.indexnet", f"{ours}.hidden")
        return {**hidden, f"{ours}.predict.weight": f"{published}.indexnet.3.weight"}
    if not isinstance(network, DepthwiseIndexNetwork) or network.shared:
        return {}  # never published
    columns = [f"{published}.indexnet{k}" for k in (1, 2, 3, 4)]
    last = 0 if network.hidden is None else 3
    each: list[KeyMap] = [{f"{ours}.predict.weight": f"{column}.{last}.weight"} for column in columns]
    if network.hidden is not None:
        for keys, column in zip(each, columns, strict=True):
            keys |= conv_unit_keys(column, f"{ours}.hidden")
    return {key: Columns(tuple(str(keys[key]) for keys in each), network) for key in each[0]}


@register_published_options("indexnet_matting")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's.

    The output stride of a model without index networks leaves no trace in its weights: 32 is assumed.
    """
    decoder, stem = state.get("decoder_layer6.dconv.0.weight"), state.get("layer0.0.weight")
    if decoder is None or stem is None or "pred.1.weight" not in state:
        return None
    channels = stem.shape[0]
    options = {
        "index_network": "max",
        "output_stride": 32,
        "aspp": "dconv_pp.aspp1.atrous_conv.0.weight" in state,
        "decoder_conv": "depsep" if "decoder_layer6.dconv.3.weight" in state else "std",
        "width": next((w for w in PUBLISHED_WIDTHS if int(32 * w) == channels), channels / 32),
        "decoder_kernel_size": decoder.shape[-1],
    }
    block = {k.removeprefix("index0."): t for k, t in state.items() if k.startswith("index0.")}
    if block:
        first = next(block[k] for k in ("indexnet.weight", "indexnet.0.weight", "indexnet1.0.weight") if k in block)
        options["nonlinear"] = "indexnet.3.weight" in block or "indexnet1.3.weight" in block
        options["context"] = first.shape[-1] == 4
        options["output_stride"] = next(s for s, last in ((32, 6), (16, 4), (8, 3)) if _has_index(state, last))
        if "indexnet1.0.weight" not in block:
            options["index_network"] = "hin"
        else:
            options["index_network"] = "o2o" if first.shape[1] == 1 else "m2o"
            options["index_width"] = first.shape[0] // channels if options["nonlinear"] else 1
    return options


def _has_index(state: Mapping[str, Tensor], stage: int) -> bool:
    return any(key.startswith(f"index{stage}.") for key in state)
