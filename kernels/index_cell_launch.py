# SPDX-License-Identifier: Apache-2.0
"""Launches the kernel of index_cell.py: tiles, offsets, outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyindexnet.reference.index_cell import memory_format

from .index_cell import index_cell_kernel

#: (lanes of a tile, warps) by ratio, for contiguous and for channels_last outputs. Contiguous: one cell per thread, so that a
#: thread's positions of a row are one vector load and no tile changes its distribution over threads. Channels_last: four
#: channels per thread are one vector load; fewer where K = 9 or 16 tiles would fill the registers.
_TILES = {
    False: {2: (256, 8), 3: (128, 4), 4: (128, 4)},
    True: {2: (512, 4), 3: (256, 4), 4: (128, 4)},
}
#: Most channels of a channels_last tile: 128 bytes of float32.
_MAX_BLOCK_C = 32
#: Contiguous, holistic, gradient of the map: cells of a tile; its other lanes take other channels of the same cells.
_SUM_BLOCK_P = 32
#: Holistic, no gradient of the map: tiles of a program, which share one normalised map.
_SHARED = 8


def _tile(channels_last: bool, holistic: bool, sums: bool, ratio: int, channels: int, cells: int) -> tuple[int, int, int, int]:
    """(channels of a program, BLOCK_C, BLOCK_P, warps); ``sums``: over the channels, for the gradient of a holistic map."""
    lanes, warps = _TILES[channels_last][ratio]
    if channels_last:
        block_c = min(triton.next_power_of_2(channels), _MAX_BLOCK_C)
        block_p = lanes // block_c
    else:  # a small plane leaves room for more channels
        block_p = min(triton.next_power_of_2(cells), _SUM_BLOCK_P if sums else lanes)
        block_c = min(triton.next_power_of_2(channels), lanes // block_p)
    warps = min(warps, max(1, block_c * block_p // 32))
    if not holistic:
        return block_c, block_c, block_p, warps
    return channels if sums else min(channels, block_c * _SHARED), block_c, block_p, warps


class Image(NamedTuple):
    """A strided (N, C, H, W) tensor; strides in elements."""

    ptr: Any
    sn: Any
    sc: Any
    sh: Any
    sw: Any


class IndexMap(NamedTuple):
    """A strided (N, Ci, K, h, w) tensor of logits."""

    ptr: Any
    sn: Any
    sc: Any
    sk: Any
    sh: Any
    sw: Any


def is_wide(t: Tensor) -> bool:
    """Whether offsets inside one image need 64 bits. The margin is for masked cells and channels beyond the last."""
    if t.untyped_storage().nbytes() < 2**30 * t.element_size():  # quick, and true of nearly every call
        return False
    return sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) >= 2**30


def _image(t: Tensor | None) -> Image | None:
    return None if t is None else Image(t, *t.stride())


def _index_map(t: Tensor | None) -> IndexMap | None:
    return None if t is None else IndexMap(t, *t.stride())


def empty_image(x: Tensor, height: int, width: int) -> Tensor:
    """An output of ``height x width`` in the memory format of ``x``."""
    size = (x.shape[0], x.shape[1], height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def launch(
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    size: tuple[int, int],
    *,
    factor_high: Tensor | None = None,
    factor_low: Tensor | None = None,
    other_high: Tensor | None = None,
    other_low: Tensor | None = None,
    out_high: Tensor | None = None,
    out_low: Tensor | None = None,
    grad_logits: Tensor | None = None,
) -> None:
    """One pass over the cells of ``logits``, see index_cell.py; ``size`` is (H, W). Fills ``out_*`` and ``grad_logits``."""
    n, channels = x.shape[:2]
    if n == 0:
        return
    h, w = logits.shape[3:]
    channels_last = memory_format(x) == torch.channels_last
    holistic = logits.shape[1] == 1
    sums = holistic and grad_logits is not None
    span, block_c, block_p, warps = _tile(channels_last, holistic, sums, ratio, channels, h * w)
    cell_blocks, channel_blocks = triton.cdiv(h * w, block_p), triton.cdiv(channels, span)
    images = (factor_high, factor_low, other_high, other_low, out_high, out_low)
    wide = any(t is not None and is_wide(t) for t in (logits, grad_logits, *images))
    with torch.cuda.device_of(x):
        index_cell_kernel[(n * cell_blocks * channel_blocks,)](
            *(_image(t) for t in images),
            _index_map(logits),
            _index_map(grad_logits),
            channels,
            *size,
            w,
            h * w,
            cell_blocks,
            channel_blocks,
            span,
            R=ratio,
            HOW=normalization,
            HOLISTIC=holistic,
            CHANNELS_LAST=channels_last,
            ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
            INDEX=tl.int64 if wide else tl.int32,
            BLOCK_C=block_c,
            BLOCK_P=block_p,
            num_warps=warps,
        )


def launch_backward(
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    size: tuple[int, int],
    need_x: bool,
    need_logits: bool,
    *,
    x_is_high: bool,
    **factors: Tensor,
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_logits) from the gradients of the outputs, ``factors``; one that is not needed is empty."""
    grad_x = empty_image(x, *x.shape[2:]) if need_x else None
    grad_logits = torch.empty_like(logits) if need_logits else None
    other = x if need_logits else None
    if need_x or need_logits:
        images = {"other_high": other, "out_high": grad_x} if x_is_high else {"other_low": other, "out_low": grad_x}
        launch(x, logits, ratio, normalization, size, grad_logits=grad_logits, **images, **factors)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_logits is None else grad_logits,
    )
