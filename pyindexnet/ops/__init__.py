# SPDX-License-Identifier: Apache-2.0
"""The operators: public functions over backends that are registered with PyTorch.

Derivatives are those of reverse mode, of any order that a docstring names. Forward mode (``torch.func.jvp``, ``jacfwd``) raises
NotImplementedError. Direct calls of ``torch.ops.pyindexnet`` and compiled code are not checked: PyTorch drops tangents there.
"""

from .affinity_downsample import affinity_downsample
from .affinity_map import affinity_map
from .affinity_moments import affinity_moments
from .affinity_upsample import affinity_upsample
from .carafe import carafe
from .dynamic_downsample import dynamic_downsample
from .dynamic_upsample import dynamic_upsample
from .grouped_spatial_fusion import grouped_spatial_fusion
from .indexed_pool import indexed_pool
from .indexed_pool_skip import indexed_pool_skip
from .indexed_upsample import indexed_upsample
from .non_background_pool import non_background_pool

__all__ = [
    "affinity_downsample",
    "affinity_map",
    "affinity_moments",
    "affinity_upsample",
    "carafe",
    "dynamic_downsample",
    "dynamic_upsample",
    "grouped_spatial_fusion",
    "indexed_pool",
    "indexed_pool_skip",
    "indexed_upsample",
    "non_background_pool",
]
