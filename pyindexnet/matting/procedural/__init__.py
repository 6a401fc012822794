# SPDX-License-Identifier: Apache-2.0
"""The procedural matting generator: training and test data that nobody has to license."""

from pyindexnet.matting.procedural.generator import OBJECTS, ProceduralMatting
from pyindexnet.matting.procedural.sheet import as_picture, sample_sheet, tile

__all__ = ["OBJECTS", "ProceduralMatting", "as_picture", "sample_sheet", "tile"]
