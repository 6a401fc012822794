# SPDX-License-Identifier: Apache-2.0
"""Data for training and evaluation: folder layouts, composition on the fly with the papers' augmentations, trimaps, loaders.

``CompositionDataset(adobe(root), list_pictures(coco), "a2u", seed=1)`` with an :class:`EpochSampler` gives items that are
reproducible from (seed, epoch, index) whatever the number of workers.
"""

from pyindexnet.matting.data.compose import compose_item
from pyindexnet.matting.data.dataset import CompositionDataset, EpochSampler, EvaluationDataset
from pyindexnet.matting.data.files import list_pictures
from pyindexnet.matting.data.layouts import (
    Composite,
    Foreground,
    Photograph,
    adobe,
    aim_500,
    composition_1k,
    composition_1k_parts,
    cutouts,
    distinctions_646,
    foreground_folders,
    photographs,
)
from pyindexnet.matting.data.recipes import RECIPES, Recipe
from pyindexnet.matting.data.strong import Strong
from pyindexnet.matting.data.trimap import draw_trimap

__all__ = [
    "RECIPES",
    "Composite",
    "CompositionDataset",
    "EpochSampler",
    "EvaluationDataset",
    "Foreground",
    "Photograph",
    "Recipe",
    "Strong",
    "adobe",
    "aim_500",
    "compose_item",
    "composition_1k",
    "composition_1k_parts",
    "cutouts",
    "distinctions_646",
    "draw_trimap",
    "foreground_folders",
    "list_pictures",
    "photographs",
]
