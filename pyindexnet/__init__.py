# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for learned down- and upsampling, and the image-matting models built on them."""

from . import backends
from ._version import __version__
from .adoption import accelerate, rebuild
from .allocator import tune_allocator
from .backends import BackendError, use_backend
from .models import create_model, list_models, load_checkpoint
from .ops import (
    affinity_downsample,
    affinity_upsample,
    carafe,
    dynamic_downsample,
    dynamic_upsample,
    grouped_spatial_fusion,
    indexed_pool,
    indexed_pool_skip,
    indexed_upsample,
    non_background_pool,
)

__all__ = [
    "BackendError",
    "__version__",
    "accelerate",
    "affinity_downsample",
    "affinity_upsample",
    "backends",
    "carafe",
    "create_model",
    "dynamic_downsample",
    "dynamic_upsample",
    "grouped_spatial_fusion",
    "indexed_pool",
    "indexed_pool_skip",
    "indexed_upsample",
    "list_models",
    "load_checkpoint",
    "non_background_pool",
    "rebuild",
    "tune_allocator",
    "use_backend",
]
