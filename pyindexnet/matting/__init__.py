# SPDX-License-Identifier: Apache-2.0
"""Matting of photographs: files, trimaps, inference, composites."""

from pyindexnet.matting.compose import Background, composite
from pyindexnet.matting.images import Picture, read_picture, write_pictures
from pyindexnet.matting.inference import memory_plan, predict_alpha
from pyindexnet.matting.tile_operations import TilingError
from pyindexnet.matting.tiling import Tiling
from pyindexnet.matting.trimaps import fit_trimap, quantize_trimap

__all__ = [
    "Background",
    "Picture",
    "Tiling",
    "TilingError",
    "composite",
    "fit_trimap",
    "memory_plan",
    "predict_alpha",
    "quantize_trimap",
    "read_picture",
    "write_pictures",
]
