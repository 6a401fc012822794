# SPDX-License-Identifier: Apache-2.0
"""affinity_map: reads x and two small kernels, writes one value for each position. ``Case.maps`` names the kernels.

The published code writes both encodings (each a quarter of x) and reads them again for their product.
"""

from __future__ import annotations

from torch import Tensor

from .encoding import EncodingBench, encode, grid, inputs, kinds


def published(x: Tensor, u: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """[A2U] Eq. 4: two grouped convolutions, their product, its sum over the channels; the whole batch at once."""
    return scale * (encode(x, u) * encode(x, v)).sum(1)


BENCH = EncodingBench(
    name="affinity_map",
    normalization="",
    inputs=inputs,
    outputs=lambda case: ((case.size[0], 1, *grid(case)),),
    published=published,
    kinds=kinds("encode"),
    more=lambda case: {"scale": case.size[1] ** -0.5},
)
