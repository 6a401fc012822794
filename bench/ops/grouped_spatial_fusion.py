# SPDX-License-Identifier: Apache-2.0
"""grouped_spatial_fusion: reads x and the kernels, writes a map like x. Sizes: fusions of TMFNet at 512 and 1024 pixels."""

from __future__ import annotations

from torch import Tensor

from .window import WindowBench, kernels_shape, unfold, weigh

_VARIANTS = {f"fusion {k} x {k}": {"kernel_size": k, "channels_per_group": 16, "group_order": "blocked"} for k in (3, 5)}


def published(x: Tensor, kernels: Tensor, *, kernel_size: int, groups: int, group_order: str) -> Tensor:
    """[TMFNet] Eq. 6 over unfolded windows."""
    return weigh(unfold(x, kernel_size), kernels.unflatten(1, (groups, -1)), groups)


BENCH = WindowBench(
    name="grouped_spatial_fusion",
    normalization="",
    inputs=lambda case: (case.size, kernels_shape(_VARIANTS, case)),
    outputs=lambda case: (case.size,),
    published=published,
    kinds=tuple(_VARIANTS),
    variants=_VARIANTS,
    sizes=((1, 256, 128, 128), (1, 64, 256, 256)),
)
