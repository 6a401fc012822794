# SPDX-License-Identifier: Apache-2.0
"""DeepLabv3+ for image matting on MobileNetV2. Baseline B1 of [IndexNet] table 1.

Paper: "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", Chen et al.,
ECCV 2018, as compared in [IndexNet] section 5.2 ([Thesis] section 3.6.1). Written from the papers and from
arrays measured on the published network; no published code is included. Weights converted from the
published ones stay under their own licence.

One low-level map, at a quarter of the resolution, joins the context in the decoder; the alpha is predicted
at that resolution and resized. Nothing records where the encoder's detail was, which is the paper's point.
Every resize is bilinear with aligned corners. The published network insists on sizes of the form k * stride
+ 1, where the corners of all maps coincide; this one takes any size and agrees with it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, conv_unit_keys, register_key_map, register_published_options
from pyindexnet.models.indexnet_matting import ASPP_DILATIONS, Head, aspp_key_map
from pyindexnet.models.mobilenetv2 import MobileNetV2, encoder_key_map
from pyindexnet.models.registry import register_model
from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.conv import ConvBNAct, init_weights
from pyindexnet.nn.resampling import resize_like

CONTEXT = 256
LOW_LEVEL = 48


@register_model("deeplabv3plus_matting")
class DeepLabV3PlusMatting(nn.Module):
    """DeepLabv3+ matting network, 6,149,443 parameters at width 1. [IndexNet] table 1, row B1.

    Args:
        output_stride: 16 (B1), 32 or 8: reduction of the encoder.
        width: multiplier of all channel counts, rounded down; 1 is the published network.
    Shape: (N, 4, H, W) -> (N, 1, H, W), any H and W. In training N must be at least 2, see
        :class:`~pyindexnet.nn.aspp.ASPP`.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(self, *, output_stride: int = 16, width: float = 1.0) -> None:
        super().__init__()
        self.encoder = MobileNetV2(width=width, output_stride=output_stride)
        context, low = int(CONTEXT * width), int(LOW_LEVEL * width)
        self.context = ASPP(self.encoder.channels[7], context, hidden=context, dilations=ASPP_DILATIONS[output_stride])
        self.low_level = ConvBNAct(self.encoder.channels[2], low, 1)
        self.decoder = nn.Sequential(ConvBNAct(context + low, context, 5), ConvBNAct(context, context, 5))
        self.head = Head(context, conv="std", kernel_size=1)
        init_weights(self)
        self.head.start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        low = self.low_level(features[2])
        context = resize_like(self.context(features[7]), low)
        return resize_like(self.head(self.decoder(torch.cat([context, low], 1))), x)


@register_key_map(DeepLabV3PlusMatting)
def published_keys(model: DeepLabV3PlusMatting) -> KeyMap:
    """Key names of the published model for each of ours."""
    keys = encoder_key_map("encoder", "") | aspp_key_map("context", "dconv_pp")
    keys |= conv_unit_keys("decoder.first_dconv", "low_level")
    for i in range(len(model.decoder)):
        keys |= conv_unit_keys(f"decoder.last_dconv.{i}", f"decoder.{i}")
    return keys | conv_unit_keys("pred", "head.reduce") | {"head.predict.weight": "pred.3.weight"}


@register_published_options("deeplabv3plus_matting")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's.

    The output stride leaves no trace in the weights: 16, that of B1, is assumed.
    """
    return {} if "decoder.first_dconv.0.weight" in state else None
