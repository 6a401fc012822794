# SPDX-License-Identifier: Apache-2.0
"""Launches the kernels of window.py and affinity.py for logits of low rank."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pyindexnet.reference.window import Window

from .affinity import affinity_kernel
from .index_cell_launch import empty_image
from .window_launch import Call, launch_x, launch_y, planes

#: Elements of a tile of cells and taps; with twice as many, registers spill at windows of 7 x 7 and 14 x 14.
_TILE = 1024


class Affinity(NamedTuple):
    """A strided (N, d, h, w) affinity map and its (N, d, channels) generator."""

    ptr: Any
    sn: Any
    sd: Any
    sh: Any
    sw: Any
    p_ptr: Any
    p_sn: Any
    p_sd: Any
    p_sc: Any


class Map(NamedTuple):
    """A strided (N, d, h, w) tensor."""

    ptr: Any
    sn: Any
    sd: Any
    sh: Any
    sw: Any


def _affinity(a: Tensor, p: Tensor) -> Affinity:
    sn, sd, sc = p.stride()
    return Affinity(a, *a.stride(), p, 0 if p.shape[0] == 1 else sn, sd, sc)


def launch(x: Tensor, a: Tensor, p: Tensor, window: Window) -> Tensor:
    """y, see window.py."""
    y = empty_image(x, window.height, window.width)
    if x.shape[0] > 0:
        with torch.cuda.device_of(x):
            launch_y(Call(x, window, a, p, y, rank=a.shape[1]), x, _affinity(a, p), y)
    return y


def _launch_gradients(
    call: Call,
    x: Tensor,
    a: Tensor,
    p: Tensor,
    grad: Tensor,
    grad_a: Tensor | None,
    softmax: Tensor | None,
    need_p: bool,
) -> Tensor | None:
    """grad_a and the softmax of each kernel; returns grad_p, if needed, of all samples that share the generator."""
    window, (n, rank, h, w) = call.window, a.shape
    need = grad_a is not None or need_p
    block_t = triton.next_power_of_2(window.taps)
    block_p = min(triton.next_power_of_2(h * w), max(_TILE // block_t, 1))
    blocks = triton.cdiv(h * w, block_p)
    parts = torch.empty((n, blocks, rank, p.shape[2]), dtype=call.dtype, device=x.device) if need_p else None
    affinity_kernel[(n * blocks,)](
        planes(x, window) if need else None,
        _affinity(a, p),
        planes(grad, window) if need else None,
        None if grad_a is None else Map(grad_a, *grad_a.stride()),
        parts,
        softmax,
        window.groups,
        call.per_group,
        *x.shape[2:],
        window.height,
        window.width,
        w,
        h * w,
        blocks,
        BLOCK_P=block_p,
        BLOCK_T=block_t,
        BLOCK_D=triton.next_power_of_2(rank),
        **call.options,
    )
    if parts is None:
        return None
    return parts.sum((0, 1)).unsqueeze(0) if p.shape[0] == 1 else parts.sum(1)


def launch_backward(
    grad: Tensor, x: Tensor, a: Tensor, p: Tensor, window: Window, need_x: bool, need_a: bool, need_p: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_a, grad_p); one that is not needed is empty."""
    grad_x = empty_image(x, *x.shape[2:]) if need_x else None
    grad_a = torch.empty_like(a) if need_a else None
    grad_p = torch.empty_like(p) if need_p else None
    if x.shape[0] > 0 and (need_x or need_a or need_p):
        call = Call(x, window, a, p, grad, grad_x, grad_a, rank=a.shape[1])
        softmax = call.softmax(x) if need_x else None
        with torch.cuda.device_of(x):
            if need_a or need_p or softmax is not None:
                found = _launch_gradients(call, x, a, p, grad, grad_a, softmax, need_p)
                if grad_p is not None and found is not None:
                    grad_p.copy_(found)
            if grad_x is not None:
                launch_x(call, grad, _affinity(a, p), softmax, grad_x)
    elif grad_p is not None:
        grad_p.zero_()
    return tuple(x.new_empty(0) if g is None else g for g in (grad_x, grad_a, grad_p))  # type: ignore[return-value]
