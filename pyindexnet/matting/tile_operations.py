# SPDX-License-Identifier: Apache-2.0
"""Operations that would see a tile as the whole image, done for the whole image.

Convolutions, poolings and upsampling look at a neighbourhood: a tile with enough of it gives what the image gives. Two kinds of
operations do not, and are caught while the network runs, wherever in it they stand:

- the mean over a map (ASPP's image branch, the global feature of global-local fusion), means over its cells and the moments of
  its encodings (affinity-aware resampling, :mod:`pyindexnet.nn.map_statistics`): a pass over all tiles sums them up in float64,
  each pixel once, and stops there; the next pass has them. As many passes as there are such statistics, and one;
- bilinear interpolation with aligned corners, whose sampling points depend on the size of the map: computed at the points that
  it has in the image.

Adaptive pooling to more than one cell (pyramid pooling) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pyindexnet.nn.map_statistics import cell_means, cell_weights, encoding_moments

#: Channels that are in float64 at once: a copy of a whole map would count in the memory that tiles must keep to.
_CHANNELS = 8


class TilingError(ValueError):
    """A network that cannot run in tiles, or not within the memory that it may use."""


class StatisticWanted(Exception):
    """Ends a pass at a mean, or the like, that is not known yet; what the tile's core adds to it has been added."""


Span = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the image, begin and end: what the network sees, and the core that is kept of its output."""

    rows: Span
    columns: Span
    core_rows: Span
    core_columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]


class _Place(NamedTuple):
    """The core along one side of a map: its pixels in the tile's map and in the image's, which has ``side`` of them."""

    local: slice
    image: slice
    side: int


@dataclass(frozen=True)
class _Moments:
    """Mean and summed squared deviations of ``count`` values, float64; the sum of two is that of all their values."""

    count: int
    mean: Tensor
    deviation: Tensor

    def __add__(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        step = other.mean - self.mean
        between = step.square() * (self.count * other.count / count)
        return _Moments(count, self.mean + step * (other.count / count), self.deviation + other.deviation + between)

    def value(self) -> Tensor:
        """(..., 2): mean and variance."""
        return torch.stack((self.mean, self.deviation / self.count), -1)


class WholeImage(TorchFunctionMode):
    """While active, the network that runs on a tile gets means, moments and sampling points of the image.

    Args:
        size: height and width of the image, as the network would get it.
        blank: means and moments are zeros, to see what else reaches across the image.
    Attributes:
        corners: whether an interpolation with aligned corners was met.
        filled_by: if ``blank``, the first operation that made NaN of a whole map from NaN in a part of it.
    """

    def __init__(self, size: Span, *, blank: bool = False) -> None:
        super().__init__()
        self.size = size
        self.blank = blank
        self.corners = False
        self.filled_by: str | None = None
        self._tile = Tile((0, size[0]), (0, size[1]), (0, size[0]), (0, size[1]))
        self._known: list[Tensor] = []
        self._part: Any = None
        self._next = 0
        self._like: torch.dtype = torch.float32
        self._global: Any = WeakIdKeyDictionary()

    def start(self, tile: Tile) -> None:
        """The network is about to run on this tile."""
        self._tile = tile
        self._next = 0

    def finish_pass(self) -> None:
        """All tiles have added to the statistic."""
        if self._part is None:
            raise AssertionError("no tile has added to the statistic")
        value = self._part.value() if isinstance(self._part, _Moments) else self._part
        self._known.append(value.to(self._like))
        self._part = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.mean, torch.mean) and _over_space(args[0], args[1:], kwargs):
            keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
            mean = self._mean(args[0])
            return mean if keep else self._mark(mean.flatten(1))
        if func is cell_means:
            return self._cell_means(*args)
        if func is encoding_moments:
            return self._moments(*args, **kwargs)
        if func is F.adaptive_avg_pool2d:
            wanted = kwargs.get("output_size", args[1] if len(args) > 1 else None)
            if wanted not in (1, (1, 1), [1, 1]):
                raise TilingError(f"the network pools the whole map into a grid ({wanted}), which tiles do not give")
            return self._mean(args[0])
        if func is F.interpolate and kwargs.get("align_corners") and kwargs.get("mode") == "bilinear":
            x = args[0]
            size = kwargs.get("size", args[1] if len(args) > 1 else None)
            if size is None:
                raise TilingError("the network interpolates with aligned corners by a factor, which tiles do not give")
            return self._interpolate(x, tuple(size))
        returned = func(*args, **kwargs)
        if self.blank and self.filled_by is None and _fills(tree_leaves((args, kwargs)), tree_leaves(returned)):
            self.filled_by = resolve_name(func) or str(func)
        if len(self._global) and isinstance(returned, Tensor) and self._is_global(tree_leaves((args, kwargs))):
            self._mark(returned)
        return returned

    def _mark(self, x: Tensor) -> Tensor:
        """Remember that ``x`` tells of the whole image."""
        self._global[x] = True
        return x

    def _is_global(self, inputs: list[Any]) -> bool:
        """Whether what is made of these tells of the whole image alone: a mean is among them and no map of the tile."""
        tensors = [t for t in inputs if isinstance(t, Tensor)]
        batch = {t.shape[0] for t in tensors if t in self._global}
        return bool(batch) and all(t in self._global for t in tensors if t.dim() == 4 and t.shape[0] in batch)

    def _of_image(self, x: Tensor, shape: tuple[int, ...], part: Callable[[], Any]) -> Tensor:
        """A statistic of a map of the image, of this shape; ``part``: what the tile's core adds to it."""
        if self.blank:
            return x.new_zeros(shape)
        self._next += 1
        if self._next <= len(self._known):
            return self._mark(self._known[self._next - 1])
        found = part()
        self._part = found if self._part is None else self._part + found
        self._like = x.dtype
        raise StatisticWanted

    def _mean(self, x: Tensor) -> Tensor:
        # one pixel of a tile may be a stride of the network as well as the whole map
        if x.shape[2:] == (1, 1) and (self._tile.shape == self.size or x in self._global):
            return x
        return self._cell_means(x, 0)

    def _cell_means(self, x: Tensor, size: int) -> Tensor:
        def part() -> Tensor:
            places = self._core(x, "means over cells" if size else "the mean")
            weights = x.new_empty(0, dtype=torch.float64)
            rows, columns = (cell_weights(place.side, size, weights)[:, place.image] for place in places)
            core = x[:, :, places[0].local, places[1].local]
            return torch.cat([rows @ some.double() @ columns.t() for some in core.split(_CHANNELS, 1)], 1)

        return self._of_image(x, (*x.shape[:2], size + 1, size + 1), part)

    def _moments(self, x: Tensor, u: Tensor, v: Tensor, *, groups: int, stride: int) -> Tensor:
        def part() -> _Moments:
            places = self._core(x, f"the moments of encodings at stride {stride}", stride)
            n, channels, rank, k = x.shape[0], x.shape[1] // groups, u.shape[2], u.shape[4]
            pads: list[int] = []  # to the windows of the core's cells; the tile is cropped where it has more
            for place, side in zip(reversed(places), (x.shape[3], x.shape[2]), strict=True):
                before = (k - 1) // 2
                pads += [before - place.local.start, place.local.stop - stride - before + k - side]
            kernels = torch.stack((u, v), 2).expand(n, x.shape[1], -1, -1, -1, -1)
            means, deviations, count = [], [], 0
            for some, taps in zip(x.split(channels, 1), kernels.split(channels, 1), strict=True):
                maps, taps = F.pad(some, pads).flatten(0, 1).unsqueeze(0), taps.flatten(0, 3).unsqueeze(1)
                encodings = F.conv2d(maps, taps, stride=stride, groups=n * channels)
                encodings = encodings.view(n, channels, 2, rank, -1).double()
                mean = encodings.mean((1, 4), keepdim=True)
                means.append(mean[:, 0, :, :, 0])
                deviations.append((encodings - mean).square().sum((1, 4)))
                count = channels * encodings.shape[4]
            return _Moments(count, *(torch.stack(t, 1).transpose(2, 3) for t in (means, deviations)))

        return self._of_image(x, (x.shape[0], groups, u.shape[2], 2, 2), part)

    def _core(self, x: Tensor, use: str, cell: int = 1) -> tuple[_Place, _Place]:
        """Where the tile's core lies in a map whose cells have this side; ``use``: what the network takes of it."""
        tile = self._tile
        spans = ((tile.rows, tile.core_rows), (tile.columns, tile.core_columns))
        places = []
        for side, (span, core), whole in zip(x.shape[2:], spans, self.size, strict=True):
            stride, rest = divmod(span[1] - span[0], side)
            if rest or any(edge % (stride * cell) for edge in (span[0], *core, whole)):
                raise TilingError(f"the network takes {use} of a map of {side} pixels, which do not divide the tile")
            local, image = (slice((core[0] - first) // stride, (core[1] - first) // stride) for first in (span[0], 0))
            places.append(_Place(local, image, whole // stride))
        return places[0], places[1]

    def _interpolate(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        self.corners = True
        for dim, span, whole in ((2, self._tile.rows, self.size[0]), (3, self._tile.columns, self.size[1])):
            x = self._along(x, dim, size[dim - 2], span, whole)
        return x

    def _along(self, x: Tensor, dim: int, out: int, span: Span, whole: int) -> Tensor:
        """Linear interpolation along one dimension at the points of the image."""
        side, tile = x.shape[dim], span[1] - span[0]

        def of_image(n: int) -> Span:
            """First pixel of a map with n pixels in the tile, and its size in the image."""
            if (span[0] * n) % tile or (whole * n) % tile:
                raise TilingError(f"the network interpolates a map of {n} pixels, which do not divide the tile")
            return span[0] * n // tile, whole * n // tile

        (x_first, x_whole), (y_first, y_whole) = of_image(side), of_image(out)
        step = (x_whole - 1) / (y_whole - 1) if y_whole > 1 else 0.0
        points = (torch.arange(out, device=x.device, dtype=torch.float64) + y_first) * step - x_first
        points = points.clamp(0, side - 1)
        low = points.floor().clamp(max=max(side - 2, 0)).long()
        weight = (points - low).to(x.dtype).view([-1 if d == dim else 1 for d in range(4)])
        return torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=side - 1)), weight)


def _fills(inputs: list[Any], returned: list[Any]) -> bool:
    """Whether NaN in a part of a map has become a whole map of it."""
    if not any(isinstance(t, Tensor) and t.numel() > 0 and bool(t.isnan().all()) for t in returned):
        return False
    found = [t.isnan() for t in inputs if isinstance(t, Tensor) and t.dim() == 4]
    return any(bool(t.any()) for t in found) and not any(bool(t.all()) for t in found)


def _over_space(x: Any, positional: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dims = kwargs.get("dim", positional[0] if positional else None)
    if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(dims, (tuple, list)):
        return False
    return sorted(d % 4 for d in dims) == [2, 3]
