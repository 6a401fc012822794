# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF005 (Triton's language has no unpacking into a tuple)
"""The kernel under all indexed operators, Triton. Equations: pyindexnet/reference/index_cell.py.

With z the normalised logits of a cell and K = R * R its positions, every forward and backward is one pass over the cells:

    factor_k = factor_high_k + factor_low          (either part may be missing)
    out_low  = sum_k z_k factor_k,   out_high_k = z_k factor_k
    grad_logits = J^T (factor * other)             (other: a high- or a low-resolution tensor)

One program: a tile of BLOCK_C channels x BLOCK_P cells of one image, every tensor read and written once. The K positions of a
cell are a tuple of K tiles, in registers. Sums are float32, float64 for float64; a fixed order, no atomics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyindexnet.reference.index_cell import memory_format


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


# --- one cell: tuples of K tiles ------------------------------------------------------------------------------------


@triton.jit
def _sigmoid(a, K: tl.constexpr):
    s = ()
    for k in tl.static_range(K):
        s = s + (1.0 / (1.0 + tl.exp(-a[k])),)
    return s


@triton.jit
def _softmax(a, inside, K: tl.constexpr, SHIFT: tl.constexpr):
    """Over the positions inside the image. SHIFT by the maximum unless ``a`` is bounded (a sigmoid)."""
    # The first position of a cell is always inside.
    if SHIFT:
        top = a[0]
        for k in tl.static_range(1, K):
            top = tl.maximum(top, tl.where(inside[k], a[k], top))
    total = tl.exp(a[0] - top) if SHIFT else tl.exp(a[0])
    p = (total,)
    for k in tl.static_range(1, K):
        e = tl.where(inside[k], tl.exp(a[k] - top) if SHIFT else tl.exp(a[k]), 0.0)
        total += e
        p = p + (e,)
    scale = 1.0 / total
    out = ()
    for k in tl.static_range(K):
        out = out + (p[k] * scale,)
    return out


@triton.jit
def normalize(a, inside, HOW: tl.constexpr, K: tl.constexpr):
    """(z, first): the normalised logits and, where there are two stages, the result of the first; else z again."""
    if HOW == "none":
        first = a
        z = a
    elif HOW == "sigmoid":
        first = _sigmoid(a, K)
        z = first
    elif HOW == "softmax":
        first = _softmax(a, inside, K, True)
        z = first
    elif HOW == "sigmoid_softmax":
        first = _sigmoid(a, K)
        z = _softmax(first, inside, K, False)
    else:
        tl.static_assert(HOW == "softmax_sigmoid")
        first = _softmax(a, inside, K, True)
        z = _sigmoid(first, K)
    return z, first


@triton.jit
def _sigmoid_vjp(s, d, K: tl.constexpr):
    out = ()
    for k in tl.static_range(K):
        out = out + (s[k] * (1.0 - s[k]) * d[k],)
    return out


@triton.jit
def _softmax_vjp(p, d, K: tl.constexpr):
    mean = p[0] * d[0]
    for k in tl.static_range(1, K):
        mean += p[k] * d[k]
    out = ()
    for k in tl.static_range(K):
        out = out + (p[k] * (d[k] - mean),)
    return out


@triton.jit
def normalize_vjp(z, first, d, HOW: tl.constexpr, K: tl.constexpr):
    """J^T d from the results of :func:`normalize`."""
    if HOW == "none":
        out = d
    elif HOW == "sigmoid":
        out = _sigmoid_vjp(z, d, K)
    elif HOW == "softmax":
        out = _softmax_vjp(z, d, K)
    elif HOW == "sigmoid_softmax":
        out = _sigmoid_vjp(first, _softmax_vjp(z, d, K), K)
    else:
        out = _softmax_vjp(first, _sigmoid_vjp(z, d, K), K)
    return out


# --- memory ---------------------------------------------------------------------------------------------------------
# Tiles are flat: c, i, j name the channel and the cell of each of LANES lanes. ``keep`` masks lanes whose channel and cell
# exist. PACKED accesses carry the R positions of a row as a second axis, padded to a power of two, so that a thread reads and
# writes them in one piece; without (channels_last) neighbouring lanes are neighbouring channels.


@triton.jit
def _split_row(v, R: tl.constexpr):
    """(LANES, 2 or 4) -> R tiles."""
    if R == 2:
        v0, v1 = tl.split(v)
        row = (v0, v1)
    else:
        even, odd = tl.split(tl.reshape(v, (v.shape[0], 2, 2)))
        v0, v2 = tl.split(even)
        v1, v3 = tl.split(odd)
        row = (v0, v1, v2) if R == 3 else (v0, v1, v2, v3)
    return row


@triton.jit
def _join_row(row, R: tl.constexpr):
    """Inverse of :func:`_split_row`; for R = 3 the padding repeats a position."""
    if R == 2:
        v = tl.join(row[0], row[1])
    else:
        pairs = tl.join(tl.join(row[0], row[2]), tl.join(row[1], row[R - 1]))
        v = tl.reshape(pairs, (row[0].shape[0], 4))
    return v


@triton.jit
def _load_high(image, n, c, i, j, keep, H, W, R: tl.constexpr, PACKED: tl.constexpr, ACC: tl.constexpr):
    """The K positions of each cell of a high-resolution image, 0 where absent."""
    base = image.ptr + n * image.sn
    cells = ()
    for dy in tl.static_range(R):
        y = i * R + dy
        row_ptr = base + (c * image.sc + y * image.sh)
        row_keep = keep & (y < H)
        if PACKED:
            dx = tl.arange(0, 2 if R == 2 else 4)[None, :]
            x = (j * R)[:, None] + dx
            mask = row_keep[:, None] & (x < W) & (dx < R)
            row = _split_row(tl.load(row_ptr[:, None] + x * image.sw, mask=mask, other=0.0), R)
            for k in tl.static_range(R):
                cells = cells + (row[k].to(ACC),)
        else:
            for dx in tl.static_range(R):
                x = j * R + dx
                cells = cells + (tl.load(row_ptr + x * image.sw, mask=row_keep & (x < W), other=0.0).to(ACC),)
    return cells


@triton.jit
def _store_high(image, values, n, c, i, j, keep, H, W, R: tl.constexpr, PACKED: tl.constexpr):
    base = image.ptr + n * image.sn
    for dy in tl.static_range(R):
        y = i * R + dy
        row_ptr = base + (c * image.sc + y * image.sh)
        row_keep = keep & (y < H)
        if PACKED:
            dx = tl.arange(0, 2 if R == 2 else 4)[None, :]
            x = (j * R)[:, None] + dx
            row = _join_row(values[dy * R : dy * R + R], R).to(image.ptr.dtype.element_ty)
            tl.store(row_ptr[:, None] + x * image.sw, row, mask=row_keep[:, None] & (x < W) & (dx < R))
        else:
            for dx in tl.static_range(R):
                x = j * R + dx
                value = values[dy * R + dx].to(image.ptr.dtype.element_ty)
                tl.store(row_ptr + x * image.sw, value, mask=row_keep & (x < W))


@triton.jit
def _low_ptr(image, n, c, i, j):
    return image.ptr + n * image.sn + (c * image.sc + i * image.sh + j * image.sw)


@triton.jit
def _map_ptr(index_map, n, c, i, j, HOLISTIC: tl.constexpr):
    """Pointers to position 0 of each cell."""
    offset = i * index_map.sh + j * index_map.sw
    if not HOLISTIC:
        offset = offset + c * index_map.sc
    return index_map.ptr + n * index_map.sn + offset


@triton.jit
def _inside(i, j, H, W, R: tl.constexpr):
    """Which positions of each cell lie inside the image: K masks."""
    masks = ()
    for dy in tl.static_range(R):
        for dx in tl.static_range(R):
            masks = masks + ((i * R + dy < H) & (j * R + dx < W),)
    return masks


# --- the kernel -----------------------------------------------------------------------------------------------------


@triton.jit
def _channels(
    factor_high,
    factor_low,
    other_high,
    other_low,
    out_high,
    out_low,
    z,
    n,
    c,
    i,
    j,
    keep,
    H,
    W,
    R: tl.constexpr,
    PACKED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write the outputs of a tile; return factor * other, K tiles (the factor where there is no other)."""
    K: tl.constexpr = R * R
    if factor_high is not None:
        high = _load_high(factor_high, n, c, i, j, keep, H, W, R, PACKED, ACC)
    if factor_low is not None:
        low = tl.load(_low_ptr(factor_low, n, c, i, j), mask=keep, other=0.0).to(ACC)
    if other_high is not None:
        others = _load_high(other_high, n, c, i, j, keep, H, W, R, PACKED, ACC)
    if other_low is not None:
        other = tl.load(_low_ptr(other_low, n, c, i, j), mask=keep, other=0.0).to(ACC)

    factor = ()
    product = ()
    for k in tl.static_range(K):
        if factor_high is None:
            t = low
        elif factor_low is None:
            t = high[k]
        else:
            t = high[k] + low
        factor = factor + (t,)
        if other_high is not None:
            product = product + (t * others[k],)
        elif other_low is not None:
            product = product + (t * other,)
        else:
            product = product + (t,)

    if out_high is not None:
        weighted = ()
        for k in tl.static_range(K):
            weighted = weighted + (z[k] * factor[k],)
        _store_high(out_high, weighted, n, c, i, j, keep, H, W, R, PACKED)
    if out_low is not None:
        total = z[0] * factor[0]
        for k in tl.static_range(1, K):
            total += z[k] * factor[k]
        tl.store(_low_ptr(out_low, n, c, i, j), total.to(out_low.ptr.dtype.element_ty), mask=keep)
    return product


@triton.jit
def _sum_channels(v, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sum over the channels of a tile, given to every lane of the cell."""
    if BLOCK_C == 1:
        total = v
    elif CHANNELS_LAST:
        total = tl.sum(tl.reshape(v, (BLOCK_P, BLOCK_C)), 1)[:, None]
        total = tl.reshape(tl.broadcast_to(total, (BLOCK_P, BLOCK_C)), (BLOCK_P * BLOCK_C,))
    else:
        total = tl.sum(tl.reshape(v, (BLOCK_C, BLOCK_P)), 0)[None, :]
        total = tl.reshape(tl.broadcast_to(total, (BLOCK_C, BLOCK_P)), (BLOCK_C * BLOCK_P,))
    return total


@triton.jit
def index_cell_kernel(
    factor_high,  # Image (N, C, H, W) or None
    factor_low,  # Image (N, C, h, w) or None
    other_high,  # Image (N, C, H, W) or None
    other_low,  # Image (N, C, h, w) or None
    out_high,  # Image (N, C, H, W) or None
    out_low,  # Image (N, C, h, w) or None
    logits,  # IndexMap (N, C or 1, K, h, w)
    grad_logits,  # IndexMap (N, C or 1, K, h, w) or None
    C,
    H,
    W,
    w,
    cells,  # h * w
    cell_blocks,
    channel_blocks,
    span,  # channels of a program
    R: tl.constexpr,
    HOW: tl.constexpr,
    HOLISTIC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program: BLOCK_P cells of one image, in BLOCK_C channels; under a holistic map, in ``span`` channels."""
    K: tl.constexpr = R * R
    # Block numbers are below 2^31. Image numbers are 64 bits wide; all inside one image is INDEX (see _index_dtype).
    pid = tl.program_id(0)
    if CHANNELS_LAST:
        channel_block = pid % channel_blocks
        cell_block = pid // channel_blocks % cell_blocks
    else:
        cell_block = pid % cell_blocks
        channel_block = pid // cell_blocks % channel_blocks
    n = (pid // (cell_blocks * channel_blocks)).to(tl.int64)

    lane = tl.arange(0, BLOCK_C * BLOCK_P)
    lane_c = lane % BLOCK_C if CHANNELS_LAST else lane // BLOCK_P
    lane_p = lane // BLOCK_C if CHANNELS_LAST else lane % BLOCK_P
    p = cell_block.to(INDEX) * BLOCK_P + lane_p
    i = p // w
    j = p % w
    c = (channel_block * span + lane_c).to(INDEX)
    keep = p < cells
    if not HOLISTIC:
        keep = keep & (c < C)

    inside = _inside(i, j, H, W, R)
    a_ptr = _map_ptr(logits, n, c, i, j, HOLISTIC)
    a = ()
    for k in tl.static_range(K):
        step = tl.full((), k, INDEX) * logits.sk
        a = a + (tl.load(a_ptr + step, mask=keep & inside[k], other=0.0).to(ACC),)
    z, first = normalize(a, inside, HOW, K)

    if HOLISTIC:
        d = ()
        for k in tl.static_range(K):  # noqa: B007
            d = d + (tl.zeros((BLOCK_C * BLOCK_P,), dtype=ACC),)
        for start in range(0, span, BLOCK_C):
            keep_c = keep & (start + c < C)
            product = _channels(
                factor_high, factor_low, other_high, other_low, out_high, out_low,
                z, n, c + start, i, j, keep_c, H, W, R, not CHANNELS_LAST, ACC,
            )  # fmt: skip
            if grad_logits is not None:
                sums = ()
                for k in tl.static_range(K):
                    sums = sums + (d[k] + product[k],)
                d = sums
    else:
        d = _channels(
            factor_high, factor_low, other_high, other_low, out_high, out_low,
            z, n, c, i, j, keep, H, W, R, not CHANNELS_LAST, ACC,
        )  # fmt: skip

    if grad_logits is not None:
        if HOLISTIC:
            sums = ()
            for k in tl.static_range(K):
                sums = sums + (_sum_channels(d[k], CHANNELS_LAST, BLOCK_C, BLOCK_P),)
            d = sums
            keep = keep & (lane_c == 0)
        grads = normalize_vjp(z, first, d, HOW, K)
        grad_ptr = _map_ptr(grad_logits, n, c, i, j, HOLISTIC)
        for k in tl.static_range(K):
            step = tl.full((), k, INDEX) * grad_logits.sk
            grad = tl.where(inside[k], grads[k], 0.0).to(grad_logits.ptr.dtype.element_ty)
            tl.store(grad_ptr + step, grad, mask=keep)


# --- launch ---------------------------------------------------------------------------------------------------------

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
    elif sums:
        block_p = _SUM_BLOCK_P
        block_c = min(triton.next_power_of_2(channels), lanes // block_p)
    else:
        block_c = 1
        block_p = min(triton.next_power_of_2(cells), lanes)
    warps = min(warps, max(1, block_c * block_p // 32))
    if not holistic:
        return block_c, block_c, block_p, warps
    return channels if sums else min(channels, block_c * _SHARED), block_c, block_p, warps


def _index_dtype(*tensors: Tensor | None) -> tl.dtype:
    """Width of the offsets inside one image. The margin is for masked cells and channels beyond the last."""
    for t in tensors:
        if t is not None and sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) >= 2**30:
            return tl.int64
    return tl.int32


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
    """One pass over the cells of ``logits``, see the top of this file; ``size`` is (H, W). Fills ``out_*``, ``grad_logits``."""
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
            INDEX=_index_dtype(logits, grad_logits, *images),
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
