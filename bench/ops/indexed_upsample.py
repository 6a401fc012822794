# SPDX-License-Identifier: Apache-2.0
"""indexed_upsample: reads x and the logits, writes the upsampled map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .case import RATIO, OpBench


def published(x: Tensor, logits: Tensor) -> Tensor:
    """[IndexNet] section 4.1 step by step: sigmoid, pixel shuffle, product with the nearest-neighbour upsampling."""
    z = F.pixel_shuffle(logits.sigmoid().flatten(1, 2), RATIO)
    return z * F.interpolate(x, scale_factor=RATIO, mode="nearest")


BENCH = OpBench(
    name="indexed_upsample",
    normalization="sigmoid",
    inputs=lambda case: (case.low, case.logits),
    outputs=lambda case: (case.high,),
    published=published,
    more=lambda case: {"output_size": case.high[2:]},
)
