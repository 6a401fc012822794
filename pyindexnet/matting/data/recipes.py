# SPDX-License-Identifier: Apache-2.0
"""Augmentation recipes: what happens to a foreground on its way into an item, as the papers train."""

from __future__ import annotations

from dataclasses import dataclass

from pyindexnet.matting.data.strong import Strong
from pyindexnet.matting.data.trimap import METHODS
from pyindexnet.nn.arguments import require_one_of


@dataclass(frozen=True)
class Recipe:
    """Probabilities and ranges of the augmentations. Ranges include both ends.

    Attributes:
        size: side of the items in pixels.
        crop_sides: sides of the crop in pixels of the (resized, transformed) picture, one drawn, resized to ``size``.
        combine: probability that a second foreground is put behind the first, stretched to its size.
        resize, resize_to: probability that a foreground is first stretched to a square of ``resize_to`` pixels.
        affine: probability of a rotation (+- ``rotation`` degrees), zoom and shear (+- ``shear`` degrees).
        flip: probability of a horizontal flip.
        radius: of the trimap's unknown region, in pixels of the item.
        separate_radii: one for the background's side and one for the foreground's, else one for both.
        trimap: method of :func:`draw_trimap`.
        jitter: probability of a shift of hue (+- ``hue`` degrees), saturation and value (+- ``saturation``, ``value``) of the
            foreground.
        gamma: probability of another softness of alpha.
        pull, invert, permute: probabilities that the foreground is pulled to a random colour, inverted, its channels permuted.
        blur: probability that foreground and background are blurred.
        strong: strong augmentation.
    """

    size: int = 320
    crop_sides: tuple[int, ...] = (320, 480, 640)
    combine: float = 0.0
    resize: float = 0.0
    resize_to: int = 640
    affine: float = 0.0
    rotation: float = 30.0
    zoom: tuple[float, float] = (0.8, 1.25)
    shear: float = 10.0
    flip: float = 0.5
    radius: tuple[int, int] = (1, 19)
    separate_radii: bool = False
    trimap: str = "disk"
    jitter: float = 0.0
    hue: float = 40.0
    saturation: float = 0.1
    value: float = 0.1
    gamma: float = 0.0
    pull: float = 0.0
    invert: float = 0.0
    permute: float = 0.0
    blur: float = 0.0
    strong: Strong | None = None

    def __post_init__(self) -> None:
        for name in ("combine", "resize", "affine", "flip", "jitter", "gamma", "pull", "invert", "permute", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Recipe: {name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("size", "resize_to"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be 1 or more, got {getattr(self, name)}")
        if not self.crop_sides or min(self.crop_sides) < 1:
            raise ValueError(f"Recipe: crop_sides must be one or more sides of 1 or more, got {self.crop_sides}")
        for name, least in (("radius", 0), ("zoom", 1e-3)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"Recipe: {name} must be a range from {least} on, got {(low, high)}")
        require_one_of("Recipe", "trimap", self.trimap, METHODS)


#: By name. What a paper does not print (the ranges of affine map and jitter) is our choice.
RECIPES = {
    "indexnet": Recipe(trimap="fractional"),
    "a2u": Recipe(size=512, crop_sides=(512,), combine=0.5, resize=0.25, affine=1.0, radius=(1, 29), jitter=1.0),
    "tmfnet": Recipe(
        size=512,
        crop_sides=(512,),
        combine=0.5,
        resize=0.25,
        affine=1.0,
        radius=(0, 15),  # kernels of side 1 to 30
        separate_radii=True,
        trimap="square",
        jitter=1.0,
    ),
    "lsanet": Recipe(
        size=640,
        crop_sides=tuple(range(480, 801, 32)),
        combine=0.5,
        affine=0.5,
        rotation=180.0,
        radius=(1, 24),
        separate_radii=True,
        gamma=0.3,
        pull=0.3,
        invert=0.3,
        permute=0.3,
    ),
    "rmat": Recipe(
        size=512,
        crop_sides=(512,),
        combine=0.5,
        resize=0.25,
        affine=1.0,
        radius=(1, 29),
        jitter=1.0,
        strong=Strong(),
    ),
}
