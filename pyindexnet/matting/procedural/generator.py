# SPDX-License-Identifier: Apache-2.0
"""Items of the procedural matting generator, a pure function of (split, seed, index)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.data.dataset import Key
from pyindexnet.matting.data.trimap import draw_trimap
from pyindexnet.matting.procedural import media, objects, plants
from pyindexnet.matting.procedural.folders import CutOuts, Photographs
from pyindexnet.matting.procedural.raster import Array, Layer, Rng, blur, uniform
from pyindexnet.matting.procedural.textures import background
from pyindexnet.matting.trimaps import UNKNOWN

#: Objects by name, and how often each is drawn.
OBJECTS: dict[str, tuple[Callable[[Rng, tuple[int, int]], Layer], float]] = {
    "hair": (objects.hair, 2.5),
    "fur": (objects.fur, 2.0),
    "foliage": (plants.foliage, 1.5),
    "frond": (plants.frond, 1.8),
    "crown": (plants.crown, 1.2),
    "grass": (plants.grass, 1.2),
    "net": (media.net, 1.2),
    "lace": (media.lace, 0.7),
    "veil": (media.veil, 0.7),
    "smoke": (media.smoke, 0.7),
    "glass": (media.glass, 0.7),
    "bubbles": (media.bubbles, 0.5),
    "motion": (lambda rng, size: media.moving(rng, None, size), 0.7),
    "solid": (objects.solid, 1.5),
}
#: Splits of one seed have no item in common.
SPLITS = ("train", "test")

_LEAST_SEEN = 0.002  # of the picture; an object that shows less is drawn again
_TRIES = 8


class ProceduralMatting(Dataset[Item]):
    """Pictures with exact alpha, made on the fly: objects over textures, both different in each item.

    image = alpha·foreground + (1 - alpha)·background, with sensor noise of the same field in all three; alpha has 8 bits.

    Args:
        size: height and width of the items, each at least 32.
        length: number of items; an ``index`` beyond it is refused.
        seed: of the whole set, at least 0. split: "train" or "test".
        foregrounds: folder of RGBA cut-outs that replace a drawn object with probability ``share``.
        backgrounds: folder of photographs that replace a drawn background with probability ``share``.
        share: see above, in [0, 1].
        kinds: names of :data:`OBJECTS` to draw from; None: all.
        trimap_radius: dilation of the unknown region in pixels at 320, smallest and largest; drawn for each item.
    Item: dict of ``image`` (3, H, W) RGB in [0, 1], ``trimap`` (1, H, W) in {0, 0.5, 1}, ``alpha`` (1, H, W), ``foreground``
        and ``background`` (3, H, W), float32, and ``name``, "kind-index".
    Raises:
        ValueError: an argument out of its range, or a folder without usable files.
    Deterministic: an item is bit for bit the same in every process with the same versions of NumPy and OpenCV.
    """

    def __init__(
        self,
        size: tuple[int, int] = (320, 320),
        length: int = 1000,
        *,
        seed: int = 0,
        split: str = "train",
        foregrounds: str | os.PathLike[str] | None = None,
        backgrounds: str | os.PathLike[str] | None = None,
        share: float = 0.5,
        kinds: tuple[str, ...] | None = None,
        trimap_radius: tuple[int, int] = (1, 20),
    ) -> None:
        kinds = tuple(OBJECTS) if kinds is None else kinds
        for name, ok, rule, value in (
            ("size", min(size) >= 32, "be at least 32 x 32", size),
            ("length", length >= 1, "be at least 1", length),
            ("seed", seed >= 0, "be at least 0", seed),
            ("split", split in SPLITS, f"be one of {', '.join(SPLITS)}", split),
            ("share", 0 <= share <= 1, "be in [0, 1]", share),
            ("kinds", kinds and set(kinds) <= set(OBJECTS), f"be of {', '.join(OBJECTS)}", kinds),
            ("trimap_radius", 1 <= trimap_radius[0] <= trimap_radius[1], "be 1 <= low <= high", trimap_radius),
        ):
            if not ok:
                raise ValueError(f"ProceduralMatting: {name} must {rule}, got {value!r}")
        self.size, self.length, self.seed, self.split = (int(size[0]), int(size[1])), length, seed, split
        self.share, self.kinds, self.trimap_radius = share, kinds, trimap_radius
        self._cut_outs = None if foregrounds is None else CutOuts(foregrounds)
        self._photographs = None if backgrounds is None else Photographs(backgrounds)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, key: int | Key) -> Item:
        """Item of (epoch, index), or of epoch 0 for an index alone; every epoch has new ones, except in the test split.

        Raises:
            IndexError: the index is not in [0, length).
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < self.length:
            raise IndexError(f"ProceduralMatting: index must be in [0, {self.length}), got {index}")
        epoch = epoch if self.split == "train" else 0
        rng = np.random.Generator(np.random.PCG64([SPLITS.index(self.split), self.seed, epoch, index]))
        name, layer = self._foreground(rng)
        behind = self._background(rng)
        levels = np.rint(np.clip(layer.alpha, 0, 1) * 255).astype(np.uint8)
        alpha = levels.astype(np.float32) / 255
        colour, behind = _camera(rng, layer.colour, behind)
        image = behind + alpha[:, :, None] * (colour - behind)
        scale = min(self.size) / 320
        low, high = (max(1, round(radius * scale)) for radius in self.trimap_radius)
        trimap = draw_trimap(levels, *rng.integers(low, high + 1, 2).tolist())
        return {
            "image": _channels_first(image),
            "trimap": torch.from_numpy(np.where(trimap == UNKNOWN, 0.5, trimap / 255).astype(np.float32))[None],
            "alpha": torch.from_numpy(alpha)[None],
            "foreground": _channels_first(colour),
            "background": _channels_first(behind),
            "name": f"{name}-{index:05d}",
        }

    def _foreground(self, rng: Rng) -> tuple[str, Layer]:
        for _ in range(_TRIES):
            name, layer = self._object(rng)
            if rng.random() < 0.25:
                second, other = self._object(rng)
                name, layer = f"{name}+{second}", layer.over(other)
            if min(float(layer.alpha.mean()), float((layer.alpha < 1 / 512).mean())) > _LEAST_SEEN:
                return name, layer
        # rare: seen through a disc, so that there is something, and something else
        centre = self.size[1] / 2, self.size[0] / 2
        disc = objects.fill_coverage([objects.outline(rng, centre, min(self.size) * 0.3, roughness=0.1)], self.size)
        return name, Layer(disc * np.maximum(layer.alpha, np.float32(0.5)), layer.colour)

    def _object(self, rng: Rng) -> tuple[str, Layer]:
        if self._cut_outs is not None and rng.random() < self.share:
            return self._cut_outs.draw(rng, self.size)
        weights = np.array([OBJECTS[kind][1] for kind in self.kinds])
        kind = self.kinds[int(rng.choice(len(self.kinds), p=weights / weights.sum()))]
        layer = OBJECTS[kind][0](rng, self.size)
        if kind not in ("motion", "smoke", "veil") and rng.random() < 0.06:
            return f"moving {kind}", media.moving(rng, layer, self.size)
        if rng.random() < 0.15:  # slightly out of focus
            sigma = min(self.size) / 320 * uniform(rng, 0.4, 2)
            layer = Layer(blur(layer.alpha, sigma), blur(layer.colour, sigma))
        return kind, layer

    def _background(self, rng: Rng) -> Array:
        if self._photographs is not None and rng.random() < self.share:
            return self._photographs.draw(rng, self.size)
        return background(rng, self.size)


def _camera(rng: Rng, foreground: Array, behind: Array) -> tuple[Array, Array]:
    """Exposure and tone of each part, and noise common to both, so that the composition equation stays exact."""
    if rng.random() < 0.2:  # the object takes on the colours of its surroundings: hard cases
        mean = behind.mean((0, 1))
        foreground = foreground + np.float32(uniform(rng, 0.3, 0.8)) * (mean - foreground.mean((0, 1)))
    parts = []
    for part in (foreground, behind):
        tone, gain = np.exp(rng.normal(0, 0.25)), 1 + rng.normal(0, 0.12)
        parts.append(np.clip(np.clip(part, 0, 1) ** np.float32(tone) * np.float32(gain), 0, 1))
    foreground, behind = parts
    if rng.random() < 0.7:
        noise = np.float32(rng.exponential(0.012)) * rng.standard_normal(behind.shape, dtype=np.float32)
        if rng.random() < 0.5:
            noise = blur(noise, 0.6)
        foreground, behind = np.clip(foreground + noise, 0, 1), np.clip(behind + noise, 0, 1)
    return foreground.astype(np.float32), behind.astype(np.float32)


def _channels_first(picture: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32))
