# SPDX-License-Identifier: Apache-2.0
"""Operations that would see a tile as the whole image, done for the whole image.

Convolutions, poolings and upsampling look at a neighbourhood: a tile with enough of it gives what the image gives. Two kinds of
operations do not, and are caught while the network runs, wherever in it they stand:

- the mean over a map (ASPP's image branch, the global feature of global-local fusion): a pass over all tiles sums it up, each
  pixel once, and stops there; the next pass has it. As many passes as there are means that depend on one another, and one;
- bilinear interpolation with aligned corners, whose sampling points depend on the size of the map: computed at the points that
  it has in the image.

Adaptive pooling to more than one cell (pyramid pooling) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class TilingError(ValueError):
    """A network that cannot run in tiles, or not within the memory that it may use."""


class MeanWanted(Exception):
    """Ends a pass at a mean that is not known yet; its sum over the tile's core has been added."""


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


class WholeImage(TorchFunctionMode):
    """While active, the network that runs on a tile gets means and sampling points of the image.

    Args:
        size: height and width of the image, as the network would get it.
        blank: means are zeros, to see what else reaches across the image.
    Attributes:
        corners: whether an interpolation with aligned corners was met.
    """

    def __init__(self, size: Span, *, blank: bool = False) -> None:
        super().__init__()
        self.size = size
        self.blank = blank
        self.corners = False
        self._tile = Tile((0, size[0]), (0, size[1]), (0, size[0]), (0, size[1]))
        self._means: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count = 0
        self._next = 0
        self._like: torch.dtype = torch.float32
        self._global: Any = WeakIdKeyDictionary()

    def start(self, tile: Tile) -> None:
        """The network is about to run on this tile."""
        self._tile = tile
        self._next = 0

    def finish_pass(self) -> None:
        """All tiles have added to the mean."""
        if self._sum is None:
            raise AssertionError("no tile has added to the mean")
        self._means.append((self._sum / self._count).to(self._like))
        self._sum, self._count = None, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.mean, torch.mean) and _over_space(args[0], args[1:], kwargs):
            keep = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
            mean = self._mean(args[0])
            return mean if keep else self._mark(mean.flatten(1))
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

    def _mean(self, x: Tensor) -> Tensor:
        # one pixel of a tile may be a stride of the network as well as the whole map
        if x.shape[2:] == (1, 1) and (self._tile.shape == self.size or x in self._global):
            return x
        if self.blank:
            return x.new_zeros(*x.shape[:2], 1, 1)
        self._next += 1
        if self._next <= len(self._means):
            return self._mark(self._means[self._next - 1])
        rows, columns = self._core(x)
        part = x[:, :, rows, columns].sum((2, 3), keepdim=True, dtype=torch.float64)
        self._sum = part if self._sum is None else self._sum + part
        self._count += (rows.stop - rows.start) * (columns.stop - columns.start)
        self._like = x.dtype
        raise MeanWanted

    def _core(self, x: Tensor) -> tuple[slice, slice]:
        """Where the tile's core lies in a map of the tile."""
        tile = self._tile
        spans = []
        for side, span, core in zip(x.shape[2:], (tile.rows, tile.columns), (tile.core_rows, tile.core_columns), strict=True):
            stride, rest = divmod(span[1] - span[0], side)
            if rest or any((edge - span[0]) % stride for edge in core):
                raise TilingError(f"the network takes the mean of a map of {side} pixels, which do not divide the tile")
            spans.append(slice((core[0] - span[0]) // stride, (core[1] - span[0]) // stride))
        return spans[0], spans[1]

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


def _over_space(x: Any, positional: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dims = kwargs.get("dim", positional[0] if positional else None)
    if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(dims, (tuple, list)):
        return False
    return sorted(d % 4 for d in dims) == [2, 3]
