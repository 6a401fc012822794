# SPDX-License-Identifier: Apache-2.0
"""The procedural matting generator: training and test data that nobody has to license."""

from pyindexnet.matting.procedural.generator import OBJECTS, Item, Key, ProceduralMatting, random_trimap
from pyindexnet.matting.procedural.sheet import as_picture, sample_sheet, tile

__all__ = ["OBJECTS", "Item", "Key", "ProceduralMatting", "as_picture", "random_trimap", "sample_sheet", "tile"]
