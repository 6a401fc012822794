# SPDX-License-Identifier: Apache-2.0
"""Launches the kernels of encoding.py: tiles, scratch memory, outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .encoding import (
    encoding_gather_kernel,
    encoding_grads_kernel,
    encoding_kernels_kernel,
    encoding_map_kernel,
    encoding_moments_kernel,
)
from .index_cell_launch import _image, empty_image, is_wide

#: Channels and positions of a tile, elements of a tile of taps and positions, and warps.
_TILE = (8, 64)
_TAPS_TILE = 2048
_WARPS = 4


class Kernels(NamedTuple):
    """A strided (N, C, d, k, k) tensor, or (N, C, d, 2, 2); strides in elements, 0 where one serves all."""

    ptr: Any
    sn: Any
    sc: Any
    sr: Any
    sy: Any
    sx: Any


def _strided(t: Tensor | None) -> Kernels | None:
    if t is None:
        return None
    sn, sc, *rest = t.stride()
    return Kernels(t, 0 if t.shape[0] == 1 else sn, 0 if t.shape[1] == 1 else sc, *rest)


class Encoding:
    """What the launches of one call share."""

    def __init__(self, x: Tensor, u: Tensor, v: Tensor, stride: int, *more: Tensor | None) -> None:
        self.x, self.kernels, self.stride = x, (_strided(u), _strided(v)), stride
        self.n, self.channels, self.height, self.width = x.shape
        self.rank, self.k = u.shape[2], u.shape[4]
        self.grid = -(-self.height // stride), -(-self.width // stride)
        self.positions = self.grid[0] * self.grid[1]
        self.acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        wide = any(t is not None and is_wide(t) for t in (x, u, v, *more))
        self.options = {
            "KERNEL": self.k,
            "STRIDE": stride,
            "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
            "INDEX": tl.int64 if wide else tl.int32,
            "num_warps": _WARPS,
        }
        self.block_c = min(triton.next_power_of_2(self.channels), _TILE[0])
        self.blocks = triton.cdiv(self.channels, self.block_c)
        self.sizes = (self.channels, self.rank, self.height, self.width, self.grid[1], self.positions)

    def scratch(self, *size: int) -> Tensor:
        return torch.empty((self.n, self.channels, self.rank, *size), dtype=self.acc, device=self.x.device)

    def block_p(self, count: int) -> int:
        return min(triton.next_power_of_2(count), _TILE[1] * _TILE[0] // self.block_c)

    def tile(self) -> dict[str, int]:
        return {"BLOCK_C": self.block_c, "BLOCK_P": self.block_p(self.positions)}

    def map(self, out: Tensor, affine: Tensor | None, scale: float, slope: float) -> None:
        blocks = triton.cdiv(self.positions, self.block_p(self.positions))
        encoding_map_kernel[(self.n * self.rank * blocks,)](
            _image(self.x),
            *self.kernels,
            _strided(affine),
            _image(out),
            *self.sizes,
            blocks,
            SCALE=scale,
            SLOPE=slope,
            **self.tile(),
            **self.options,
        )

    def moments(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance, (N, groups, d, 2) each, in accumulators. The channels of a group are combined by PyTorch."""
        partial = self.scratch(2, 2)
        encoding_moments_kernel[(self.n * self.blocks * self.rank,)](
            _image(self.x), *self.kernels, partial, *self.sizes, self.blocks, **self.tile(), **self.options
        )
        means, squares = partial.unflatten(1, (groups, -1)).unbind(-1)
        mean = means.mean(2)
        deviations = squares + self.positions * (means - mean.unsqueeze(2)).square()
        return mean, deviations.sum(2) / (self.positions * (self.channels // groups))

    def backward(
        self,
        need: Sequence[bool],
        u: Tensor,
        v: Tensor,
        *,
        grad: Tensor | None = None,
        affine: Tensor | None = None,
        grad_affine: Tensor | None = None,
        lines: Tensor | None = None,
        scale: float = 1.0,
        slope: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, u and v, and ``grad_affine``, from that of the map or ``lines`` (see the kernel)."""
        empty = self.x.new_empty  # one each: outputs must not alias
        grad_x = empty_image(self.x, self.height, self.width) if need[0] else empty(0)
        if self.n == 0:
            grad_u, grad_v = (torch.zeros_like(t) if n else empty(0) for t, n in zip((u, v), need[1:], strict=True))
            return grad_x, grad_u, grad_v
        grads = self.scratch(2, self.positions)
        encoding_grads_kernel[(self.n * self.blocks * self.rank,)](
            _image(self.x),
            *self.kernels,
            _strided(affine),
            _image(grad),
            # Its strides as they are: they index an output.
            None if grad_affine is None else Kernels(grad_affine, *grad_affine.stride()),
            lines,
            grads,
            *self.sizes,
            self.blocks,
            SCALE=scale,
            SLOPE=slope,
            **self.tile(),
            **self.options,
        )
        out = [empty(0), empty(0)]
        if need[0]:
            self._gather(grads, grad_x)
        if need[1] or need[2]:
            sums = self._kernel_sums(grads)
            for e, kernel in enumerate((u, v)):
                if need[1 + e]:
                    total = sums[:, :, :, e].sum_to_size(*kernel.shape[:3], self.k * self.k)
                    out[e] = torch.empty_like(kernel).copy_(total.view(kernel.shape))
        return grad_x, out[0], out[1]

    def _kernel_sums(self, grads: Tensor) -> Tensor:
        sums = self.scratch(2, self.k * self.k)
        block_t = triton.next_power_of_2(self.k * self.k)
        encoding_kernels_kernel[(self.n * self.channels * self.rank,)](
            _image(self.x),
            grads,
            sums,
            *self.sizes,
            BLOCK_T=block_t,
            BLOCK_P=min(triton.next_power_of_2(self.positions), max(_TAPS_TILE // block_t, 1)),
            **self.options,
        )
        return sums

    def _gather(self, grads: Tensor, grad_x: Tensor) -> None:
        pixels = self.height * self.width
        block_p = self.block_p(pixels)
        pixel_blocks = triton.cdiv(pixels, block_p)
        encoding_gather_kernel[(self.n * self.blocks * pixel_blocks,)](
            *self.kernels,
            grads,
            _image(grad_x),
            self.channels,
            self.rank,
            self.width,
            *self.grid,
            pixels,
            pixel_blocks,
            self.blocks,
            BLOCK_C=self.block_c,
            BLOCK_P=block_p,
            **self.options,
        )
