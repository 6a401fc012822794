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

import triton
import triton.language as tl

from .normalization import normalize, normalize_vjp

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
    # Block numbers are below 2^31; offsets of images are 64 bits wide, those inside an image INDEX (see index_cell_launch.py).
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
        for _ in tl.static_range(K):
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
