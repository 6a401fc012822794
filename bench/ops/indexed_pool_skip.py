# SPDX-License-Identifier: Apache-2.0
"""indexed_pool_skip: reads x and the logits, writes the pooled map and the index-multiplied one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .case import RATIO, OpBench


def published(x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """[IndexNet] section 4.1 step by step: sigmoid, softmax over the cell, pixel shuffle, product, 4 times the cell's mean."""
    z = F.pixel_shuffle(logits.sigmoid().softmax(2).flatten(1, 2), RATIO)
    skip = z * x
    return 4 * F.avg_pool2d(skip, RATIO), skip


BENCH = OpBench(
    name="indexed_pool_skip",
    normalization="sigmoid_softmax",
    inputs=lambda case: (case.high, case.logits),
    outputs=lambda case: (case.low, case.high),
    published=published,
)
