# SPDX-License-Identifier: Apache-2.0
"""The operators in plain PyTorch, forward and closed-form backward: the specification that every backend is tested against."""

from .affinity_downsample import affinity_downsample_reference
from .affinity_upsample import affinity_upsample_reference
from .dynamic_downsample import dynamic_downsample_reference
from .dynamic_upsample import dynamic_upsample_reference
from .grouped_spatial_fusion import grouped_spatial_fusion_reference
from .indexed_pool import indexed_pool_backward_reference, indexed_pool_reference
from .indexed_pool_skip import indexed_pool_skip_backward_reference, indexed_pool_skip_reference
from .indexed_upsample import indexed_upsample_backward_reference, indexed_upsample_reference
from .non_background_pool import non_background_pool_backward_reference, non_background_pool_reference
from .normalization import NORMALIZATIONS

__all__ = [
    "NORMALIZATIONS",
    "affinity_downsample_reference",
    "affinity_upsample_reference",
    "dynamic_downsample_reference",
    "dynamic_upsample_reference",
    "grouped_spatial_fusion_reference",
    "indexed_pool_backward_reference",
    "indexed_pool_reference",
    "indexed_pool_skip_backward_reference",
    "indexed_pool_skip_reference",
    "indexed_upsample_backward_reference",
    "indexed_upsample_reference",
    "non_background_pool_backward_reference",
    "non_background_pool_reference",
]
