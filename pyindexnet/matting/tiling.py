# SPDX-License-Identifier: Apache-2.0
"""Large images in little memory: tiles that overlap by the receptive field, and give what the whole image gives.

How far an input pixel reaches is found by asking the network: NaN in one run of rows of a long strip comes out wherever those
rows count, through any weights and activations. Tiles overlap by that distance unless the caller wants less; means over the
image and the like are those of the image (:mod:`pyindexnet.matting.tile_operations`). What then differs is rounding.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pyindexnet.backends import use_backend
from pyindexnet.matting.memory import format_size, peak_bytes, used_bytes
from pyindexnet.matting.tile_operations import Span, StatisticWanted, Tile, TilingError, WholeImage

#: The network's input in, its prediction out: (h, w, C) float32 -> (h, w).
Run = Callable[[np.ndarray], Tensor]

#: Resident memory over the tensors that are alive at once: convolutions' scratch memory, and what the allocator holds between
#: tensors. IndexNet Matting at 1024 x 1024 in float32 takes 1.14 times with glibc's default allocator, and 1.30 to 1.35 times
#: under :func:`pyindexnet.tune_allocator`, which keeps freed memory: not to be called where memory counts.
OVERHEAD = 1.2
#: Strips in which a network's reach is looked for, in units of the multiple that sizes must be of.
_STRIPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Plan:
    """Tiles of one image, and the memory that they take.

    Attributes:
        size: height and width that the network would get.
        tiles: row by row; one, where the image fits.
        overlap: rows and columns of context on each side of a tile's core; those of the image's border have none.
        reach: rows and columns over which one pixel of the input can count in the output; None where that was not needed.
        whole_bytes: expected for the image at once. tile_bytes: for the largest tile. held_bytes: by the process besides.
    """

    size: Span
    tiles: tuple[Tile, ...]
    overlap: Span
    reach: Span | None
    whole_bytes: int
    tile_bytes: int
    held_bytes: int

    @property
    def share(self) -> float:
        """Pixels that the network sees over those of the image."""
        return sum(h * w for h, w in (t.shape for t in self.tiles)) / (self.size[0] * self.size[1])

    def __str__(self) -> str:
        whole = f"whole {format_size(self.whole_bytes + self.held_bytes)}"
        if len(self.tiles) == 1:
            return f"{whole}, in one piece"
        height, width = self.tiles[0].shape
        rows = len({t.core_rows for t in self.tiles})
        tile = format_size(self.tile_bytes + self.held_bytes)
        text = (
            f"{whole}; {len(self.tiles) // rows} x {rows} tiles of {width} x {height}, {tile}, "
            f"overlap {self.overlap[1]} x {self.overlap[0]}, {self.share:.2f} times the pixels"
        )
        if self.reach is not None and any(o < r for o, r in zip(self.overlap, self.reach, strict=True)):
            text += f", less than the receptive field ({self.reach[1]} x {self.reach[0]}): not exact"
        return text


class Tiling:
    """Predicts an image in tiles where it would not fit; an argument of :func:`pyindexnet.matting.predict_alpha`.

    Args:
        max_memory: bytes that the process may take: resident memory for the CPU, allocated on the device for CUDA.
        overlap: pixels of context on each side of a tile, rounded up to what the network's sizes are multiples of; None: the
            network's receptive field, with which tiles and image agree to rounding.
    Attributes:
        plan: of the last image. seam: largest difference, at the seams of the last image, between the alphas of the tiles on
            both sides; 0 for one tile.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(self, max_memory: int, *, overlap: int | None = None) -> None:
        if max_memory < 1:
            raise ValueError(f"Tiling: max_memory must be at least 1 byte, got {max_memory}")
        if overlap is not None and overlap < 0:
            raise ValueError(f"Tiling: overlap must be at least 0 pixels, got {overlap}")
        self.max_memory = max_memory
        self.overlap = overlap
        self.plan: Plan | None = None
        self.seam = 0.0
        self._reach: weakref.WeakKeyDictionary[nn.Module, Span] = weakref.WeakKeyDictionary()

    def make_plan(
        self,
        model: nn.Module,
        size: Span,
        channels: int,
        *,
        rule: Span,
        memory_format: torch.memory_format,
        extra_bytes: int = 0,
    ) -> Plan:
        """Choose tiles for an image.

        Args:
            model: in evaluation mode. size, channels: of its input. rule: (multiple, extra) of its sizes.
            memory_format: of its input.
            extra_bytes: that the process will hold besides what it holds now.
        Raises:
            TilingError: the smallest tile with its overlap does not fit, or the network cannot run in tiles.
        """
        held = used_bytes(next(model.parameters()).device) + extra_bytes
        budget = self.max_memory - held

        def expected(shape: Span) -> int:
            return int(OVERHEAD * peak_bytes(model, (1, channels, *shape), memory_format))

        whole = expected(size)
        if whole <= budget:
            return Plan(size, (_tile(size),), (0, 0), None, whole, whole, held)
        multiple, extra = rule
        if extra:
            raise TilingError(f"the network takes sizes of {multiple} n + {extra}, which cannot be divided into tiles")
        if model not in self._reach:
            self._reach[model] = receptive_field(model, channels, multiple, memory_format)
        reach = self._reach[model]
        wanted = reach if self.overlap is None else (_up(self.overlap, multiple),) * 2
        overlap = wanted[0], wanted[1]
        density = whole / (size[0] * size[1])
        while True:
            shape = _best_shape(size, overlap, multiple, budget / density)
            if shape is None:
                smallest = _smallest_shape(size, overlap, multiple)
                least = format_size(expected(smallest) + held, math.ceil)
                raise TilingError(
                    f"max_memory must be at least {least} for tiles with an overlap of {overlap[1]} x {overlap[0]} pixels, "
                    f"got {format_size(self.max_memory, math.floor)}"
                )
            taken = expected(shape)
            if taken <= budget:
                tiles = make_tiles(size, shape, overlap)
                return Plan(size, tiles, overlap, reach, whole, taken, held)
            density = taken / (shape[0] * shape[1]) * 1.01  # a smaller map takes more per pixel; look again

    def predict(
        self, model: nn.Module, run: Run, aligned: np.ndarray, *, rule: Span, memory_format: torch.memory_format
    ) -> np.ndarray:
        """The network's prediction for a stacked and aligned input, (H, W, C) float32 -> (H, W) float32."""
        size = aligned.shape[0], aligned.shape[1]
        self.plan = self.make_plan(
            model, size, aligned.shape[2], rule=rule, memory_format=memory_format, extra_bytes=4 * size[0] * size[1]
        )
        self.seam = 0.0
        prediction, self.seam = run_tiles(run, aligned, self.plan.tiles)
        return prediction


def run_tiles(run: Run, aligned: np.ndarray, tiles: tuple[Tile, ...]) -> tuple[np.ndarray, float]:
    """Predict tile by tile.

    Args:
        run: the network, (h, w, C) float32 -> (h, w).
        aligned: (H, W, C) float32.
        tiles: their cores cover the image, row by row.
    Returns:
        (H, W) float32, and the largest difference between two tiles' predictions, clipped to [0, 1], at their seam.
    Raises:
        TilingError: the network cannot run in tiles.
    """
    prediction = np.empty(aligned.shape[:2], np.float32)
    if len(tiles) == 1:
        prediction[:] = run(aligned).float().cpu().numpy()
        return prediction, 0.0
    seam = 0.0
    with WholeImage((aligned.shape[0], aligned.shape[1])) as whole:

        def result(tile: Tile) -> np.ndarray:
            whole.start(tile)
            return run(aligned[slice(*tile.rows), slice(*tile.columns)]).float().cpu().numpy()

        first = _after_statistics(whole, tiles, result)
        for tile, part in zip(tiles, itertools.chain([first], map(result, tiles[1:])), strict=True):
            rows, columns = tile.core_rows, tile.core_columns
            local = part[rows[0] - tile.rows[0] :, columns[0] - tile.columns[0] :]
            local = local[: rows[1] - rows[0], : columns[1] - columns[0]]
            # the last row and column of the neighbours, as this tile has them
            if rows[0] > tile.rows[0]:
                above = part[rows[0] - tile.rows[0] - 1, columns[0] - tile.columns[0] :][: local.shape[1]]
                seam = max(seam, _difference(above, prediction[rows[0] - 1, slice(*columns)]))
            if columns[0] > tile.columns[0]:
                left = part[rows[0] - tile.rows[0] :, columns[0] - tile.columns[0] - 1][: local.shape[0]]
                seam = max(seam, _difference(left, prediction[slice(*rows), columns[0] - 1]))
            prediction[slice(*rows), slice(*columns)] = local
    return prediction, seam


def _after_statistics(whole: WholeImage, tiles: tuple[Tile, ...], result: Callable[[Tile], np.ndarray]) -> np.ndarray:
    """Prediction of the first tile, once all means and the like that it takes are known."""
    while True:
        try:
            return result(tiles[0])
        except StatisticWanted:
            for tile in tiles[1:]:
                try:
                    result(tile)
                except StatisticWanted:
                    continue
                raise TilingError("the network takes a mean or moments over the map in some tiles and not in others") from None
            whole.finish_pass()


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the alphas that two predictions become."""
    return float(np.abs(a.clip(0, 1) - b.clip(0, 1)).max())


def receptive_field(model: nn.Module, channels: int, multiple: int, memory_format: torch.memory_format) -> Span:
    """Rows and columns beyond its cell over which a pixel of the input can count in the output, rounded up to the multiple.

    Means and moments over the whole map are left out.

    Args:
        model: (1, channels, H, W) -> (1, 1, H, W), in evaluation mode. multiple: of its sizes. memory_format: of its input.
    Raises:
        TilingError: it reaches across the longest strip.
    """
    parameter = next(model.parameters())
    reach: list[int] = []
    strips = iter(_STRIPS)
    cells = next(strips)
    for dim in (2, 3):
        while True:
            shape = [1, channels, multiple, multiple]
            shape[dim] = length = cells * multiple
            middle = length // 2
            generator = torch.Generator().manual_seed(0)
            strip = torch.rand(shape, generator=generator).to(parameter.device, parameter.dtype)
            strip.narrow(dim, middle, multiple).fill_(torch.nan)
            # Fused convolutions clip NaN to a bound, and minimal filtering spreads it over a tile.
            with torch.inference_mode(), use_backend("reference"), WholeImage((shape[2], shape[3]), blank=True) as mode:
                output = model(strip.contiguous(memory_format=memory_format))
            touched = output.isnan().any(5 - dim).flatten().nonzero().flatten()
            first, last = (int(touched[0]), int(touched[-1])) if touched.numel() else (middle, middle)
            if first > 0 and last < length - 1:
                distance = max(middle - first, last + 1 - middle - multiple, 0)
                # aligned corners sample up to one coarse pixel elsewhere in an image of another size
                reach.append(_up(distance, multiple) + (multiple if mode.corners else 0))
                break
            cells = next(strips, 0)
            if not cells:
                where = "in an unknown way" if mode.filled_by is None else f"in {mode.filled_by}"
                raise TilingError(f"the network looks farther than {length // 2} pixels, or at the whole image, {where}")
    return reach[0], reach[1]


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _tile(size: Span) -> Tile:
    rows, columns = (0, size[0]), (0, size[1])
    return Tile(rows, columns, rows, columns)


def _count(whole: int, side: int, overlap: int) -> int:
    """Tiles of this side that cover a length: the ends have context on one side only."""
    return 1 if side >= whole else -(-(whole - 2 * overlap) // (side - 2 * overlap))


def _sides(whole: int, overlap: int, multiple: int) -> range:
    """Sides that a tile can have: at least one multiple of core."""
    return range(min(2 * overlap + multiple, whole), whole + 1, multiple)


def _smallest_shape(size: Span, overlap: Span, multiple: int) -> Span:
    height, width = (_sides(n, o, multiple)[0] for n, o in zip(size, overlap, strict=True))
    return height, width


def _best_shape(size: Span, overlap: Span, multiple: int, pixels: float) -> Span | None:
    """Shape of at most so many pixels with the least to compute; the smaller of equals."""
    choices = (
        (
            _count(size[0], h, overlap[0]) * h * _count(size[1], w, overlap[1]) * w,
            h * w,
            (h, w),
        )
        for h in _sides(size[0], overlap[0], multiple)
        for w in _sides(size[1], overlap[1], multiple)
        if h * w <= pixels
    )
    best = min(choices, default=None)
    return None if best is None else best[2]


def _spans(whole: int, side: int, overlap: int) -> Iterator[tuple[Span, Span]]:
    """Begin and end of each tile and of its core."""
    count = _count(whole, side, overlap)
    starts = [min(i * (side - 2 * overlap), whole - side) for i in range(count)]
    cores = [0, *(start + overlap for start in starts[1:]), whole]
    for start, begin, end in zip(starts, cores, cores[1:], strict=False):
        yield (start, start + side), (begin, end)


def make_tiles(size: Span, shape: Span, overlap: Span) -> tuple[Tile, ...]:
    """Tiles of one shape that cover an image, row by row, each with at least the overlap around its core but at the border."""
    return tuple(
        Tile(rows, columns, core_rows, core_columns)
        for rows, core_rows in _spans(size[0], shape[0], overlap[0])
        for columns, core_columns in _spans(size[1], shape[1], overlap[1])
    )
