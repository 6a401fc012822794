# SPDX-License-Identifier: Apache-2.0
"""Batches of a run. Which items a step gets depends on its number and the seed alone, not on workers or processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from pyindexnet.matting.data import RECIPES, CompositionDataset, adobe, cutouts, distinctions_646, list_pictures
from pyindexnet.matting.data.compose import Item
from pyindexnet.matting.data.dataset import Key
from pyindexnet.matting.inference import IMAGENET_MEAN, IMAGENET_STD, TrimapEncoding
from pyindexnet.matting.procedural import ProceduralMatting
from pyindexnet.matting.training.config import Procedural, TrainingConfig

Batch = dict[str, Any]


class StepSampler(Sampler[list[Key]]):
    """Micro-batches of one process: each epoch is a permutation, cut into steps, micro-batches and processes in this order.

    Args:
        length: items of an epoch.
        batch_size: items of a step, of all processes. accumulate: micro-batches of a step, in each process.
        seed: of the permutations.
        rank, count: this process and how many there are.
        start, stop: first step, and the one after the last.
    Raises:
        ValueError: ``batch_size`` cannot be cut into ``accumulate * count`` equal parts.
    """

    def __init__(
        self, length: int, batch_size: int, *, accumulate: int, seed: int, rank: int, count: int, start: int, stop: int
    ) -> None:
        if batch_size % (accumulate * count):
            raise ValueError(
                f"train: batch_size must be a multiple of accumulate * processes ({accumulate * count}), got {batch_size}"
            )
        self.length, self.batch_size, self.accumulate, self.seed = length, batch_size, accumulate, seed
        self.rank, self.count, self.start, self.stop = rank, count, start, stop
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.batch_size // (self.accumulate * self.count)
        for step in range(self.start, self.stop):
            for micro in range(self.accumulate):
                first = step * self.batch_size + (micro * self.count + self.rank) * size
                yield [self._position(first + i) for i in range(size)]

    def _position(self, number: int) -> Key:
        epoch, at = divmod(number, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return epoch, int(self._order[at])


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers; near numbers give unrelated seeds."""
    state = 0x243F6A8885A308D3
    for number in numbers:
        state = ((state ^ number) * 0x9E3779B97F4A7C15 + 0x1F83D9ABFB41BD6B) & (2**64 - 1)
        state ^= state >> 29
    return state >> 1


def make_source(config: TrainingConfig) -> ProceduralMatting | CompositionDataset:
    """The data set that a configuration asks for; items by (epoch, index)."""
    if isinstance(config.data, Procedural):
        options = config.data.model_dump(exclude={"source", "length"})
        return ProceduralMatting((config.crop, config.crop), config.data.length, seed=config.seed, **options)
    root, on_error = config.data.foregrounds, config.data.on_error
    if config.data.layout == "cutouts":
        foregrounds = cutouts(root)
    else:
        layout = adobe if config.data.layout == "adobe" else distinctions_646
        foregrounds = layout(root, on_error=on_error)
    return CompositionDataset(
        foregrounds,
        list_pictures(config.data.backgrounds, recursive=True),
        dataclasses.replace(RECIPES[config.data.recipe], size=config.crop),
        seed=config.seed,
        length=config.data.length,
        on_error=on_error,
        cache_megabytes=config.data.cache_megabytes,
    )


def make_loader(source: Dataset[Item], sampler: StepSampler, *, workers: int, pin: bool) -> DataLoader[Batch]:
    """Micro-batches in the order of the sampler, the same for any number of workers.

    Workers come from a clean server process: forked from this one they may inherit OpenCV's thread pool mid-flight and hang.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pyindexnet.matting.training.data"])
    return DataLoader(
        source,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        persistent_workers=False,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the threads; 1 would wait for those that a fork has lost
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    """End this worker when the process that trains is gone, however it ended.

    PyTorch's own watchdog waits for the parent in the process table to change: here the fork server, which lives as long as a
    worker does.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "runs in a worker only"
    trainer.join()
    os._exit(1)


def collate(items: Sequence[Item]) -> Batch:
    """Stack items: tensors (N, C, H, W), names as a list."""
    batch: Batch = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        batch[key] = torch.stack(values) if isinstance(first, Tensor) else values
    return batch


def network_input(image: Tensor, trimap: Tensor, encoding: TrimapEncoding = "level") -> Tensor:
    """What a network gets: as :func:`pyindexnet.matting.inference.stack_input`, for batches.

    Args:
        image: (N, 3, H, W) RGB in [0, 1]. trimap: (N, 1, H, W) in {0, 0.5, 1}.
        encoding: "level": trimap / 255, unknown at 128; "one_hot": maps of background, unknown and foreground.
    Returns:
        (N, 4 or 6, H, W).
    """
    mean, std = (torch.from_numpy(v).to(image)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    if encoding == "one_hot":
        maps = torch.cat([trimap == level for level in (0, 0.5, 1)], 1).to(image)
    else:
        maps = torch.where(trimap == 0.5, 128 / 255, trimap)
    return torch.cat([(image - mean) / std, maps], 1)


def trimap_encoding(model: nn.Module) -> TrimapEncoding:
    """How a network wants the trimap; "level" where it does not say."""
    return cast(TrimapEncoding, getattr(model, "trimap_encoding", "level"))
