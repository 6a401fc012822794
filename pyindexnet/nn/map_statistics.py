# SPDX-License-Identifier: Apache-2.0
"""Statistics of a whole map that affinity-aware resampling takes, each a function that can be overridden.

A :class:`torch.overrides.TorchFunctionMode` sees calls of them as it sees those of PyTorch's own functions: where a network
runs on a tile, :class:`pyindexnet.matting.tile_operations.WholeImage` gives it those of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from pyindexnet.ops.affinity_moments import affinity_moments


def _overridable(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def call(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(call, (x,), x, *args, **options)
        return function(x, *args, **options)

    return call


@_overridable
def cell_means(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, size + 1, size + 1): means over size x size cells, in the last row and column over all of x.

    The cells are those of adaptive average pooling. Two matrix products, of which the first reads x once, in either layout.
    """
    rows, columns = (cell_weights(side, size, x) for side in x.shape[2:])
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        n, c, height, width = x.shape
        by_row = rows @ x.permute(0, 2, 3, 1).reshape(n, height, width * c)  # a view
        return (columns @ by_row.view(n, size + 1, width, c)).permute(0, 3, 1, 2)
    return (rows @ x) @ columns.t()


def cell_weights(side: int, size: int, like: Tensor) -> Tensor:
    """(size + 1, side): weights of the pixels of a side in its cells, and in the mean."""
    cell = torch.arange(size, device=like.device).unsqueeze(1)
    at = torch.arange(side, device=like.device)
    inside = (at >= cell * side // size) & (at < -(-(cell + 1) * side // size)) if size else at.new_ones(0, side)
    inside = torch.cat((inside.to(like.dtype), like.new_ones(1, side)))
    return inside / inside.sum(1, keepdim=True)


#: :func:`pyindexnet.affinity_moments`.
encoding_moments = _overridable(affinity_moments)
