# SPDX-License-Identifier: Apache-2.0
"""affinity_moments: reads x and two small kernels, writes four numbers for each group of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import EncodingBench, encode, inputs, kinds

#: Groups of the group normalisation of A2U.
_GROUPS = 32


def published(x: Tensor, u: Tensor, v: Tensor, *, groups: int) -> Tensor:
    """Two grouped convolutions, mean and variance of each."""
    parts = []
    for kernel in (u, v):
        e = encode(x, kernel).unflatten(1, (groups, -1))
        variance, mean = torch.var_mean(e, (2, 4, 5), correction=0)
        parts.append(torch.stack([mean, variance], -1))
    return torch.stack(parts, -2)


BENCH = EncodingBench(
    name="affinity_moments",
    normalization="",
    inputs=inputs,
    outputs=lambda case: ((case.size[0], min(_GROUPS, case.size[1]), 1, 2, 2),),
    published=published,
    kinds=kinds("moments"),
    more=lambda case: {"groups": min(_GROUPS, case.size[1])},
)
