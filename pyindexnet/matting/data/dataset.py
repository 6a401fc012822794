# SPDX-License-Identifier: Apache-2.0
"""Data sets for PyTorch's DataLoader: composition on the fly, pictures to evaluate on, and the order of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from pyindexnet.matting.compose import composite
from pyindexnet.matting.data.compose import Item, compose_item
from pyindexnet.matting.data.files import (
    READ_ERRORS,
    Cache,
    OnError,
    Problems,
    read_colours,
    read_cutout,
    read_matte,
    read_trimap,
)
from pyindexnet.matting.data.layouts import Composite, Foreground, Photograph
from pyindexnet.matting.data.recipes import RECIPES, Recipe
from pyindexnet.nn.arguments import require_one_of

#: (epoch, index) of an item.
Key = tuple[int, int]
# With "skip", an item draws so many other files before it gives up.
_MOST_DRAWS = 50
_Source = TypeVar("_Source")


class CompositionDataset(Dataset[Item]):
    """Foregrounds over random backgrounds, with a recipe's augmentations.

    An item depends on (seed, epoch, index) and the lists of files alone, not on workers, order or cache. The foreground of item
    ``index`` is number ``index`` modulo their number; all else is drawn. Items are those of :func:`compose_item`.

    Args:
        foregrounds: from :mod:`pyindexnet.matting.data.layouts`.
        backgrounds: picture files.
        recipe: a name of :data:`RECIPES`, or a :class:`Recipe`.
        seed: 0 or more.
        length: items in an epoch; None: one for each foreground.
        on_error: at a missing or broken file: "stop" raises its error; "skip" warns once and draws another file for the item,
            50 times at most, then ValueError.
        cache_megabytes: decoded pictures that each worker keeps.
    Raises:
        ValueError: a list is empty, or an option is out of range.
    """

    def __init__(
        self,
        foregrounds: Sequence[Foreground],
        backgrounds: Sequence[Path],
        recipe: str | Recipe = "indexnet",
        *,
        seed: int = 0,
        length: int | None = None,
        on_error: OnError = "stop",
        cache_megabytes: float = 0,
    ) -> None:
        if not isinstance(recipe, Recipe):
            require_one_of("CompositionDataset", "recipe", recipe, RECIPES)
            recipe = RECIPES[recipe]
        if not foregrounds or not backgrounds:
            raise ValueError(
                "CompositionDataset: foregrounds and backgrounds must hold one or more each, "
                f"got {len(foregrounds)} and {len(backgrounds)}"
            )
        if seed < 0:
            raise ValueError(f"CompositionDataset: seed must be 0 or more, got {seed}")
        if length is not None and length < 1:
            raise ValueError(f"CompositionDataset: length must be 1 or more, got {length}")
        self.foregrounds, self.backgrounds, self.recipe, self.seed = list(foregrounds), list(backgrounds), recipe, seed
        self._length = len(self.foregrounds) if length is None else length
        self._problems = Problems(on_error)
        self._cache = Cache(cache_megabytes)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, key: int | Key) -> Item:
        """Item of (epoch, index), as :class:`EpochSampler` gives them; of epoch 0 for an index alone."""
        _keep_to_one_thread()
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < self._length:
            raise IndexError(f"CompositionDataset: index must be in [0, {self._length}), got {index}")
        rng = np.random.default_rng([self.seed, epoch, index])
        first, (colours, alpha) = self._draw(self.foregrounds, index % len(self.foregrounds), _read_foreground, rng)
        layers = [(colours, alpha)]
        if rng.random() < self.recipe.combine:
            _, (colours, alpha) = self._draw(self.foregrounds, None, _read_foreground, rng)
            layers.append((colours, alpha))
        _, (background,) = self._draw(self.backgrounds, None, _read_background, rng)
        return compose_item(layers, background, self.recipe, rng, first.name)

    def _draw(
        self,
        sources: Sequence[_Source],
        index: int | None,
        read: Callable[[_Source], tuple[np.ndarray, ...]],
        rng: np.random.Generator,
    ) -> tuple[_Source, tuple[np.ndarray, ...]]:
        """Read source ``index`` (None: a random one), or, where it cannot be read and may be skipped, random others."""
        for _ in range(_MOST_DRAWS):
            source = sources[int(rng.integers(len(sources))) if index is None else index]
            try:
                found = self._cache.get(source)
                if found is None:
                    found = read(source)
                    self._cache.put(source, found)
                return source, found
            except READ_ERRORS as error:
                self._problems.report(error)
                index, last = None, error
        raise ValueError(f"CompositionDataset: {_MOST_DRAWS} files in turn could not be read, last: {last}") from last


class EvaluationDataset(Dataset[Item]):
    """Whole pictures with trimap and true alpha.

    Items: image (3, H, W), alpha (1, H, W), float32 in [0, 1]; trimap (1, H, W) float32 of 0, 0.5, 1; name; of a composite also
    foreground and background (3, H, W). Sizes differ: load them with ``batch_size=None``.

    Args:
        sources: from :mod:`pyindexnet.matting.data.layouts`.
        on_error: at a missing or broken file: "stop" raises its error; "skip" warns, and the item holds
            only name and error, the message.
    """

    def __init__(self, sources: Sequence[Photograph | Composite], *, on_error: OnError = "stop") -> None:
        self.sources = list(sources)
        self._problems = Problems(on_error)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Item:
        _keep_to_one_thread()
        source = self.sources[index]
        try:
            return _composed(source) if isinstance(source, Composite) else _photographed(source)
        except READ_ERRORS as error:
            self._problems.report(error)
            return {"name": source.name, "error": str(error)}


class EpochSampler(Sampler[Key]):
    """Keys (epoch, index) of one epoch for one of several processes, in a random order that depends on (seed, epoch).

    Keys carry the epoch, because workers that outlive an epoch hold copies of the data set. Every process gets the same number:
    the order is repeated from its start to fill the last round.

    Args:
        length: of the data set.
        seed: 0 or more. epoch: first epoch; :meth:`set_epoch` moves on.
        rank, world_size: of this process.
        shuffle: False keeps the order.
        start: keys of this process to leave out of the first epoch, which were seen before a run was resumed.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        start: int = 0,
    ) -> None:
        if length < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"EpochSampler: length must be 1 or more and rank in [0, world_size), got {length}, {rank} of {world_size}"
            )
        self._length, self._seed, self._rank, self._world_size, self._shuffle = length, seed, rank, world_size, shuffle
        self.set_epoch(epoch, start)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch, and in it past ``start`` keys."""
        per_process = math.ceil(self._length / self._world_size)
        if epoch < 0 or not 0 <= start <= per_process:
            raise ValueError(f"EpochSampler: epoch must be 0 or more and start in [0, {per_process}], got {epoch}, {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return math.ceil(self._length / self._world_size) - self.start

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self._length)
        if self._shuffle:
            order = np.random.default_rng([self._seed, self.epoch]).permutation(self._length)
        rounds = math.ceil(self._length / self._world_size)
        own = np.resize(order, rounds * self._world_size)[self._rank :: self._world_size]
        return iter([(self.epoch, int(index)) for index in own[self.start :]])


def _keep_to_one_thread() -> None:
    """In a worker of a loader: OpenCV would use all cores in each, and its threads do not survive a fork."""
    if get_worker_info() is not None and cv2.getNumThreads() != 1:
        cv2.setNumThreads(0)  # runs all in the caller; 1 would wait for the threads that the fork has lost


def _read_foreground(source: Foreground) -> tuple[np.ndarray, ...]:
    if source.alpha is None:
        return read_cutout(source.colours)
    colours, alpha = read_colours(source.colours), read_matte(source.alpha)
    _check_size(source.alpha, alpha, source.colours, colours)
    return colours, alpha


def _read_background(source: Path) -> tuple[np.ndarray, ...]:
    return (read_colours(source),)


def _check_size(path: Path, pixels: np.ndarray, other: Path, other_pixels: np.ndarray) -> None:
    if pixels.shape[:2] != other_pixels.shape[:2]:
        raise ValueError(
            f"{path}: must have the size of {other}, {other_pixels.shape[1]} x {other_pixels.shape[0]}, "
            f"got {pixels.shape[1]} x {pixels.shape[0]}"
        )


def _unit(pixels: np.ndarray) -> torch.Tensor:
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes, np.float32) / np.float32(255))


def _maps(trimap: np.ndarray, alpha: np.ndarray, name: str) -> Item:
    levels = ((trimap > 0).astype(np.float32) + (trimap == 255)) / 2
    return {"trimap": torch.from_numpy(levels)[None], "alpha": _unit(alpha), "name": name}


def _photographed(source: Photograph) -> Item:
    image, trimap, alpha = read_colours(source.image), read_trimap(source.trimap), read_matte(source.alpha)
    for path, pixels in ((source.trimap, trimap), (source.alpha, alpha)):
        _check_size(path, pixels, source.image, image)
    return {"image": _unit(image), **_maps(trimap, alpha, source.name)}


def _composed(source: Composite) -> Item:
    foreground, background = read_colours(source.foreground), read_colours(source.background)
    alpha, trimap = read_matte(source.alpha), read_trimap(source.trimap)
    for path, pixels in ((source.alpha, alpha), (source.trimap, trimap)):
        _check_size(path, pixels, source.foreground, foreground)
    height, width = alpha.shape
    enlarge = max(height / background.shape[0], width / background.shape[1])
    if enlarge > 1:  # the rule of the data set: enlarged until it covers, then its upper left corner
        size = math.ceil(background.shape[1] * enlarge), math.ceil(background.shape[0] * enlarge)
        background = cv2.resize(background, size, interpolation=cv2.INTER_CUBIC)
    background = np.ascontiguousarray(background[:height, :width])
    image = np.rint(255 * composite(foreground, alpha / np.float32(255), background))
    return {
        "image": _unit(image),
        "foreground": _unit(foreground),
        "background": _unit(background),
        **_maps(trimap, alpha, source.name),
    }
