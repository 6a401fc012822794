# SPDX-License-Identifier: Apache-2.0
"""One file per operator, with its :class:`~bench.ops.case.OpBench`. A new operator joins by a file and a line here."""

from . import (
    affinity_downsample,
    affinity_upsample,
    dynamic_downsample,
    dynamic_upsample,
    grouped_spatial_fusion,
    indexed_pool,
    indexed_pool_skip,
    indexed_upsample,
    non_background_pool,
)
from .case import OpBench

BENCHES: dict[str, OpBench] = {
    module.BENCH.name: module.BENCH
    for module in (
        indexed_pool,
        indexed_upsample,
        indexed_pool_skip,
        non_background_pool,
        grouped_spatial_fusion,
        dynamic_upsample,
        dynamic_downsample,
        affinity_upsample,
        affinity_downsample,
    )
}
#: Every value of ``Case.maps`` that one of them understands.
KINDS = tuple(dict.fromkeys(kind for bench in BENCHES.values() for kind in bench.kinds))
