# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for learned down- and upsampling, and the image-matting models built on them."""

from . import backends
from .allocator import tune_allocator
from .backends import BackendError, use_backend
from .ops import indexed_pool, indexed_pool_skip, indexed_upsample

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "backends",
    "indexed_pool",
    "indexed_pool_skip",
    "indexed_upsample",
    "tune_allocator",
    "use_backend",
]
