# SPDX-License-Identifier: Apache-2.0
"""Deep image matting: VGG-16 encoder, max-unpooling decoder. Baselines B3 and B4 of [IndexNet] table 1.

Paper: "Deep Image Matting", Xu et al., CVPR 2017, without its refinement stage, as compared in [IndexNet]
section 5.2 ([Thesis] section 3.6.1). Written from the papers and from the names and shapes of the published
parameters; no published code is included. Weights converted from the published ones stay under their own
licence.

The encoder is VGG-16 with batch norm, its first fully connected layer turned into a 7x7 convolution. The
decoder undoes one pooling per stage, then convolves 5x5; it has no batch norm and no skip connection, so
that all it knows of the encoder's detail is where each maximum was. B4 takes away even that and upsamples
bilinearly.

Where the papers are silent: every convolution but the last is followed by a ReLU, and the alpha is not
clamped, as in the other published matting networks. No outputs of the published network were at hand to
check this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, register_key_map, register_published_options
from pyindexnet.models.registry import register_model
from pyindexnet.nn.arguments import require_one_of
from pyindexnet.nn.conv import ConvBNAct, init_weights
from pyindexnet.nn.resampling import BilinearUpsampling, MaxUnpooling

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONTEXT = 4096
DECODER = (512, 256, 128, 64, 64)
INDEX_NETWORKS = ("max", "bilinear")


@register_model("deep_matting")
class DeepMatting(nn.Module):
    """VGG-16 matting network, 130,545,345 parameters at width 1. [IndexNet] table 1, rows B3 and B4.

    Args:
        index_network: how the decoder undoes a pooling. ``"max"`` (B3): each value goes back to where the
            maximum was, zero elsewhere. ``"bilinear"`` (B4): bilinear interpolation, no indices.
        width: multiplier of all channel counts, rounded down; 1 is the published network.
    Shape: (N, 4, H, W) -> (N, 1, H, W), any H and W: a pooling rounds up, so the last window may be
        smaller; it is not where H and W are multiples of 32.
    Output: alpha, neither clamped nor passed through a sigmoid.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(self, *, index_network: str = "max", width: float = 1.0) -> None:
        super().__init__()
        require_one_of("deep_matting", "index_network", index_network, INDEX_NETWORKS)
        if not isinstance(width, (int, float)) or not 1 / 64 <= width < math.inf:
            raise ValueError(f"deep_matting: width must be a number of at least 1/64, got {width!r}")

        self.encoder = nn.ModuleList()
        channels = 4
        for stage in STAGES:
            convs = nn.Sequential()
            for out in (int(base * width) for base in stage):
                convs.append(ConvBNAct(channels, out, 3, bias=True, activation=nn.ReLU))
                channels = out
            self.encoder.append(convs)

        context = int(CONTEXT * width)
        self.context = nn.Sequential(
            nn.Conv2d(channels, context, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(context, channels, 1),
            nn.ReLU(),
        )

        self.decoder = nn.ModuleList()
        for out in (int(base * width) for base in DECODER):
            self.decoder.append(nn.Conv2d(channels, out, 5, padding=2))
            channels = out
        self.head = nn.Conv2d(channels, 1, 5, padding=2)
        self.resampling = MaxUnpooling() if index_network == "max" else BilinearUpsampling()
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        guides = []
        for stage in self.encoder:
            x, _, guide = self.resampling.reduce(stage(x), keep=False)
            guides.append(guide)
        x = self.context(x)
        for conv in self.decoder:
            x = F.relu(conv(self.resampling.restore(x, guides.pop())))
        return self.head(x)


@register_key_map(DeepMatting)
def published_keys(model: DeepMatting) -> KeyMap:
    """Key names of the published model for each of ours."""
    keys: KeyMap = {}
    for s, stage in enumerate(STAGES):
        for c in range(len(stage)):
            for leaf in ("weight", "bias"):
                keys[f"encoder.{s}.{c}.conv.{leaf}"] = f"conv{s + 1}{c + 1}.{leaf}"
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                keys[f"encoder.{s}.{c}.bn.{leaf}"] = f"bn{s + 1}{c + 1}.{leaf}"
    names = {"context.0": "conv6", "context.2": "dconv6", "head": "alpha_pred"}
    names |= {f"decoder.{i}": f"dconv{5 - i}" for i in range(5)}
    return keys | {f"{ours}.{leaf}": f"{name}.{leaf}" for ours, name in names.items() for leaf in ("weight", "bias")}


@register_published_options("deep_matting")
def published_options(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Options of the published model whose state dict this is; None if it is another model's.

    How its decoder upsamples leaves no trace in the weights; the published one unpools.
    """
    return {} if "conv6.weight" in state else None
