# SPDX-License-Identifier: Apache-2.0
"""indexed_pool: reads x and the logits, writes the pooled map."""

from __future__ import annotations

from torch import Tensor

from . import indexed_pool_skip
from .case import OpBench


def published(x: Tensor, logits: Tensor) -> Tensor:
    """[IndexNet] section 4.1 step by step: the pooled map alone of :func:`indexed_pool_skip.published`."""
    return indexed_pool_skip.published(x, logits)[0]


BENCH = OpBench(
    name="indexed_pool",
    normalization="sigmoid_softmax",
    inputs=lambda case: (case.high, case.logits),
    outputs=lambda case: (case.low,),
    published=published,
)
