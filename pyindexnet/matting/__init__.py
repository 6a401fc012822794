# SPDX-License-Identifier: Apache-2.0
"""Matting of photographs: files, trimaps, inference, composites."""

from pyindexnet.matting.compose import Background, composite
from pyindexnet.matting.images import Picture, read_picture, write_pictures
from pyindexnet.matting.inference import predict_alpha
from pyindexnet.matting.trimaps import fit_trimap, quantize_trimap

__all__ = [
    "Background",
    "Picture",
    "composite",
    "fit_trimap",
    "predict_alpha",
    "quantize_trimap",
    "read_picture",
    "write_pictures",
]
