# SPDX-License-Identifier: Apache-2.0
"""Launches the kernels of window.py: tiles, offsets, outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyindexnet.reference.index_cell import memory_format
from pyindexnet.reference.window import Window

from .index_cell_launch import empty_image, is_wide
from .window import window_kernel, window_logits_kernel, window_x_kernel

#: Channels and pixels of a tile, by whether the output is channels_last, and warps.
_TILES = {False: (8, 128), True: (32, 32)}
_WARPS = 4
#: Elements of a tile of positions and taps.
_LOGITS_TILE = 2048


class Planes(NamedTuple):
    """A strided (N, G, M, H, W) tensor: G groups of M channels, whichever channels those are; strides in elements."""

    ptr: Any
    sn: Any
    sg: Any
    sm: Any
    sh: Any
    sw: Any


class Kernels(NamedTuple):
    """A strided (N, G, T, R, R, h, w) tensor of logits."""

    ptr: Any
    sn: Any
    sg: Any
    st: Any
    sy: Any
    sx: Any
    sh: Any
    sw: Any


def planes(t: Tensor, window: Window) -> Planes:
    sn, sc, sh, sw = t.stride()
    per_group = t.shape[1] // window.groups
    return Planes(t, sn, *((sc, window.groups * sc) if window.interleaved else (per_group * sc, sc)), sh, sw)


def _kernels(t: Tensor, window: Window) -> Kernels:
    sn, sc, sh, sw = t.stride()
    r = window.scale
    if window.dense:
        return Kernels(t, sn, window.taps * sc, sc, sh, sw, r * sh, r * sw)
    return Kernels(t, sn, window.taps * r * r * sc, r * r * sc, r * sc, sc, sh, sw)


class Call:
    """What the launches of one operator share; ``tensors`` are all of its tensors but x."""

    def __init__(self, x: Tensor, window: Window, *tensors: Tensor | None, rank: int = 0) -> None:
        self.window = window
        self.channels_last = memory_format(x) == torch.channels_last
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.acc = tl.float64 if x.dtype == torch.float64 else tl.float32
        self.index = tl.int64 if any(t is not None and is_wide(t) for t in (x, *tensors)) else tl.int32
        self.per_group = x.shape[1] // window.groups
        self.options = {
            "KERNEL": window.kernel_size,
            "STRIDE": window.stride,
            "R": window.scale,
            "HOW": window.normalization,
            "RANK": rank,
            "ACC": self.acc,
            "INDEX": self.index,
            "num_warps": _WARPS,
        }

    def tiles(self, pixels: int) -> tuple[int, int, dict[str, Any]]:
        """(blocks of pixels, blocks of channels, constants) for tiles of channels x pixels."""
        most_m, most_p = _TILES[self.channels_last]
        block_m = min(triton.next_power_of_2(self.per_group), most_m)
        block_p = most_p * most_m // block_m if self.channels_last else most_p
        block_p = min(triton.next_power_of_2(pixels), block_p)
        constants = {"BLOCK_M": block_m, "BLOCK_P": block_p, "CHANNELS_LAST": self.channels_last}
        return triton.cdiv(pixels, block_p), triton.cdiv(self.per_group, block_m), constants

    def softmax(self, x: Tensor) -> Tensor | None:
        """Memory for the maximum and the sum of each kernel's softmax, where there is one."""
        if "softmax" not in self.window.normalization:
            return None
        size = (x.shape[0], self.window.groups, 2, self.window.height, self.window.width)
        return torch.empty(size, dtype=self.dtype, device=x.device)


def launch_y(call: Call, x: Tensor, logits: NamedTuple, y: Tensor) -> None:
    """y from the raw logits, given or of low rank."""
    window = call.window
    pixel_blocks, channel_blocks, constants = call.tiles(window.height * window.width)
    window_kernel[(x.shape[0] * window.groups * pixel_blocks * channel_blocks,)](
        planes(x, window),
        logits,
        planes(y, window),
        window.groups,
        call.per_group,
        *x.shape[2:],
        window.width,
        window.height * window.width,
        pixel_blocks,
        channel_blocks,
        **constants,
        **call.options,
    )


def launch(x: Tensor, logits: Tensor, window: Window) -> Tensor:
    """y, see window.py."""
    y = empty_image(x, window.height, window.width)
    if x.shape[0] > 0:
        with torch.cuda.device_of(x):
            launch_y(Call(x, window, logits, y), x, _kernels(logits, window), y)
    return y


def _launch_logits(
    call: Call, x: Tensor, logits: Tensor, grad: Tensor, grad_logits: Tensor | None, softmax: Tensor | None
) -> None:
    window, need = call.window, grad_logits is not None
    (h, w), r = window.cells, window.scale
    grid_h, grid_w = (window.height, window.width) if window.dense else (h * r, w * r)
    block_t = triton.next_power_of_2(window.taps)
    block_p = min(triton.next_power_of_2(grid_h * grid_w), max(_LOGITS_TILE // block_t, 1))
    blocks = triton.cdiv(grid_h * grid_w, block_p)
    window_logits_kernel[(x.shape[0] * window.groups * blocks,)](
        planes(x, window) if need else None,
        _kernels(logits, window),
        planes(grad, window) if need else None,
        None if grad_logits is None else _kernels(grad_logits, window),
        softmax,
        window.groups,
        call.per_group,
        *x.shape[2:],
        window.height,
        window.width,
        grid_w,
        grid_h * grid_w,
        blocks,
        DENSE=window.dense,
        BLOCK_P=block_p,
        BLOCK_T=block_t,
        **{name: value for name, value in call.options.items() if name != "RANK"},
    )


def launch_x(call: Call, grad: Tensor, logits: NamedTuple, softmax: Tensor | None, grad_x: Tensor) -> None:
    """grad_x; ``softmax`` as the kernel of the logits' gradient left it."""
    window = call.window
    pixels = grad_x.shape[2] * grad_x.shape[3]
    pixel_blocks, channel_blocks, constants = call.tiles(pixels)
    window_x_kernel[(grad_x.shape[0] * window.groups * pixel_blocks * channel_blocks,)](
        planes(grad, window),
        logits,
        softmax,
        planes(grad_x, window),
        window.groups,
        call.per_group,
        grad_x.shape[3],
        window.height,
        window.width,
        *window.cells,
        pixels,
        pixel_blocks,
        channel_blocks,
        **constants,
        **call.options,
    )


def launch_backward(
    grad: Tensor, x: Tensor, logits: Tensor, window: Window, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    """(grad_x, grad_logits); one that is not needed is empty."""
    n = x.shape[0]
    grad_x = empty_image(x, *x.shape[2:]) if need_x else None
    grad_logits = torch.empty_like(logits) if need_logits else None
    if n > 0 and (need_x or need_logits):
        call = Call(x, window, logits, grad, grad_x, grad_logits)
        softmax = call.softmax(x) if need_x else None
        with torch.cuda.device_of(x):
            if need_logits or softmax is not None:
                _launch_logits(call, x, logits, grad, grad_logits, softmax)
            if grad_x is not None:
                launch_x(call, grad, _kernels(logits, window), softmax, grad_x)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_logits is None else grad_logits,
    )
