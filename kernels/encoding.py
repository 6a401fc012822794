# SPDX-License-Identifier: Apache-2.0
"""affinity_map and affinity_moments, Triton. Equations: pyindexnet/reference/encoding.py, affinity_map.py, affinity_moments.py.

Programs hold tiles of channels x positions. The forward of the map reads x for both encodings at once and sums their products
over the channels; the encodings are never written. Moments and backward march over the positions of a block of channels; the
backward leaves the encodings' gradients in scratch memory, and two kernels take the gradients of the kernels and of x from it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _encode(
    x, x_ptr, u, u_ptr, v, v_ptr, i, j, keep, keep_c, H, W,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(U, V) of a tile; ``*_ptr``: of each channel, ``i``, ``j``: of each position."""
    a = tl.zeros(keep.shape, ACC)
    b = tl.zeros(keep.shape, ACC)
    for t in range(KERNEL * KERNEL):
        ty, tx = t // KERNEL, t % KERNEL
        row, column = i * STRIDE - (KERNEL - 1) // 2 + ty, j * STRIDE - (KERNEL - 1) // 2 + tx
        inside = keep & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        pixel = tl.load(x_ptr + (row * x.sh + column * x.sw), mask=inside, other=0.0).to(ACC)
        a += pixel * tl.load(u_ptr + (ty * u.sy + tx * u.sx), mask=keep_c, other=0.0).to(ACC)
        b += pixel * tl.load(v_ptr + (ty * v.sy + tx * v.sx), mask=keep_c, other=0.0).to(ACC)
    return a, b


@triton.jit
def _line(value, affine, ptr, e: tl.constexpr, keep_c, ACC: tl.constexpr):
    factor = tl.load(ptr + e * affine.sy, mask=keep_c, other=0.0).to(ACC)
    shift = tl.load(ptr + e * affine.sy + affine.sx, mask=keep_c, other=0.0).to(ACC)
    return value * factor + shift, factor


@triton.jit
def _through(line, value, SLOPE: tl.constexpr):
    return tl.where(line > 0, value, value * SLOPE)


@triton.jit
def encoding_map_kernel(
    x, u, v, affine, out, channels, rank, H, W, w, positions, blocks,
    SCALE: tl.constexpr, SLOPE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P positions of one sample and rank, all channels."""
    pid = tl.program_id(0)
    r = (pid // blocks % rank).to(tl.int64)
    n = (pid // blocks // rank).to(tl.int64)
    p = (pid % blocks).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    i, j = p // w, p % w
    total = tl.zeros((1, BLOCK_P), ACC)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)[:, None].to(INDEX)
        keep_c = c < channels
        keep = keep_c & (p < positions)
        x_ptr = x.ptr + n * x.sn + c * x.sc
        u_ptr = u.ptr + n * u.sn + r * u.sr + c * u.sc
        v_ptr = v.ptr + n * v.sn + r * v.sr + c * v.sc
        a, b = _encode(x, x_ptr, u, u_ptr, v, v_ptr, i, j, keep, keep_c, H, W, KERNEL, STRIDE, ACC)
        if affine is not None:
            ptr = affine.ptr + n * affine.sn + r * affine.sr + c * affine.sc
            a, _ = _line(a, affine, ptr, 0, keep_c, ACC)
            b, _ = _line(b, affine, ptr, 1, keep_c, ACC)
            a, b = _through(a, a, SLOPE), _through(b, b, SLOPE)
        total += tl.sum(a * b, 0)[None, :]
    out_ptr = out.ptr + n * out.sn + r * out.sc + i * out.sh + j * out.sw
    tl.store(out_ptr, (total * tl.full((), SCALE, ACC)).to(out.ptr.dtype.element_ty), mask=p < positions)


@triton.jit
def _channels(channels, rank, blocks, INDEX: tl.constexpr, BLOCK_C: tl.constexpr):
    """(n, channels, rank) of a program of the kernels below, and which channels there are."""
    pid = tl.program_id(0)
    r = (pid % rank).to(tl.int64)
    c = (pid // rank % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n = (pid // rank // blocks).to(tl.int64)
    return n, c, r, c < channels


@triton.jit
def encoding_moments_kernel(
    x, u, v, partial_ptr, channels, rank, H, W, w, positions, blocks,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels of one sample and rank. partial (N, C, d, 2, 2): mean, sum of squared deviations."""
    n, c, r, keep_c = _channels(channels, rank, blocks, INDEX, BLOCK_C)
    x_ptr = x.ptr + n * x.sn + c * x.sc
    u_ptr = u.ptr + n * u.sn + r * u.sr + c * u.sc
    v_ptr = v.ptr + n * v.sn + r * v.sr + c * v.sc
    mean_u = tl.zeros((BLOCK_C, 1), ACC)
    mean_v = tl.zeros((BLOCK_C, 1), ACC)
    squares_u = tl.zeros((BLOCK_C, 1), ACC)
    squares_v = tl.zeros((BLOCK_C, 1), ACC)
    for second in tl.static_range(2):
        for start in range(0, positions, BLOCK_P):
            p = tl.full((), start, INDEX) + tl.arange(0, BLOCK_P)[None, :]
            keep = keep_c & (p < positions)
            a, b = _encode(x, x_ptr, u, u_ptr, v, v_ptr, p // w, p % w, keep, keep_c, H, W, KERNEL, STRIDE, ACC)
            a = tl.where(keep, a - mean_u, 0.0)
            b = tl.where(keep, b - mean_v, 0.0)
            if second == 1:
                a, b = a * a, b * b
            squares_u += tl.sum(a, 1)[:, None]
            squares_v += tl.sum(b, 1)[:, None]
        if second == 0:
            mean_u, mean_v = squares_u / positions, squares_v / positions
            squares_u, squares_v = tl.zeros((BLOCK_C, 1), ACC), tl.zeros((BLOCK_C, 1), ACC)
    to = partial_ptr + ((n * channels + c) * rank + r) * 4
    tl.store(to, mean_u, mask=keep_c)
    tl.store(to + 1, squares_u, mask=keep_c)
    tl.store(to + 2, mean_v, mask=keep_c)
    tl.store(to + 3, squares_v, mask=keep_c)


@triton.jit
def _on_line(ptr, value, keep_c):
    constant = tl.load(ptr, mask=keep_c, other=0.0)
    linear = tl.load(ptr + 1, mask=keep_c, other=0.0)
    mean = tl.load(ptr + 2, mask=keep_c, other=0.0)
    return constant + linear * (value - mean)


@triton.jit
def encoding_grads_kernel(
    x, u, v, affine,
    grad,  # (N, d, h, w), gradient of the map; None for the moments
    grad_affine,  # None: not needed
    lines_ptr,  # (N, C, d, 2, 3), for the moments: (constant, linear, mean), see _on_line; None for the map
    grads_ptr,  # (N, C, d, 2, positions)
    channels, rank, H, W, w, positions, blocks,
    SCALE: tl.constexpr, SLOPE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of the encodings of BLOCK_C channels of one sample and rank, and those of affine."""
    n, c, r, keep_c = _channels(channels, rank, blocks, INDEX, BLOCK_C)
    x_ptr = x.ptr + n * x.sn + c * x.sc
    u_ptr = u.ptr + n * u.sn + r * u.sr + c * u.sc
    v_ptr = v.ptr + n * v.sn + r * v.sr + c * v.sc
    channel = (n * channels + c) * rank + r
    factor_sum_u = tl.zeros((BLOCK_C, 1), ACC)
    factor_sum_v = tl.zeros((BLOCK_C, 1), ACC)
    shift_sum_u = tl.zeros((BLOCK_C, 1), ACC)
    shift_sum_v = tl.zeros((BLOCK_C, 1), ACC)
    for start in range(0, positions, BLOCK_P):
        p = tl.full((), start, INDEX) + tl.arange(0, BLOCK_P)[None, :]
        i, j = p // w, p % w
        keep = keep_c & (p < positions)
        a, b = _encode(x, x_ptr, u, u_ptr, v, v_ptr, i, j, keep, keep_c, H, W, KERNEL, STRIDE, ACC)
        if lines_ptr is not None:
            grad_u, grad_v = _on_line(lines_ptr + channel * 6, a, keep_c), _on_line(lines_ptr + channel * 6 + 3, b, keep_c)
        else:
            g_ptr = grad.ptr + n * grad.sn + r * grad.sc + i * grad.sh + j * grad.sw
            g = tl.load(g_ptr, mask=p < positions, other=0.0).to(ACC) * tl.full((), SCALE, ACC)
            if affine is not None:
                ptr = affine.ptr + n * affine.sn + r * affine.sr + c * affine.sc
                line_u, factor_u = _line(a, affine, ptr, 0, keep_c, ACC)
                line_v, factor_v = _line(b, affine, ptr, 1, keep_c, ACC)
                grad_u = _through(line_u, g * _through(line_v, line_v, SLOPE), SLOPE)
                grad_v = _through(line_v, g * _through(line_u, line_u, SLOPE), SLOPE)
                if grad_affine is not None:
                    factor_sum_u += tl.sum(grad_u * a, 1)[:, None]
                    factor_sum_v += tl.sum(grad_v * b, 1)[:, None]
                    shift_sum_u += tl.sum(grad_u, 1)[:, None]
                    shift_sum_v += tl.sum(grad_v, 1)[:, None]
                grad_u, grad_v = grad_u * factor_u, grad_v * factor_v
            else:
                grad_u, grad_v = g * b, g * a
        to = grads_ptr + channel * 2 * positions + p
        tl.store(to, grad_u, mask=keep)
        tl.store(to + positions, grad_v, mask=keep)
    if grad_affine is not None:
        kind = grad_affine.ptr.dtype.element_ty
        out_ptr = grad_affine.ptr + n * grad_affine.sn + r * grad_affine.sr + c * grad_affine.sc
        tl.store(out_ptr, factor_sum_u.to(kind), mask=keep_c)
        tl.store(out_ptr + grad_affine.sx, shift_sum_u.to(kind), mask=keep_c)
        tl.store(out_ptr + grad_affine.sy, factor_sum_v.to(kind), mask=keep_c)
        tl.store(out_ptr + grad_affine.sy + grad_affine.sx, shift_sum_v.to(kind), mask=keep_c)


@triton.jit
def encoding_kernels_kernel(
    x, grads_ptr, partial_ptr, channels, rank, H, W, w, positions,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: partial (N, C, d, 2, k * k) <- the sums over the positions for the kernels of one channel and rank."""
    pid = tl.program_id(0)
    n = (pid // rank // channels).to(tl.int64)
    c = (pid // rank % channels).to(INDEX)
    t = tl.arange(0, BLOCK_T)[:, None]
    sum_u = tl.zeros((BLOCK_T, 1), ACC)
    sum_v = tl.zeros((BLOCK_T, 1), ACC)
    for start in range(0, positions, BLOCK_P):
        p = tl.full((), start, INDEX) + tl.arange(0, BLOCK_P)[None, :]
        row = p // w * STRIDE - (KERNEL - 1) // 2 + t // KERNEL
        column = p % w * STRIDE - (KERNEL - 1) // 2 + t % KERNEL
        inside = (t < KERNEL * KERNEL) & (p < positions) & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        pixel_ptr = x.ptr + n * x.sn + c * x.sc + (row * x.sh + column * x.sw)
        pixel = tl.load(pixel_ptr, mask=inside, other=0.0).to(ACC)
        grad_ptr = grads_ptr + pid.to(tl.int64) * 2 * positions + p
        sum_u += tl.sum(pixel * tl.load(grad_ptr, mask=p < positions, other=0.0), 1)[:, None]
        sum_v += tl.sum(pixel * tl.load(grad_ptr + positions, mask=p < positions, other=0.0), 1)[:, None]
    to = partial_ptr + pid.to(tl.int64) * 2 * KERNEL * KERNEL + t
    tl.store(to, sum_u, mask=t < KERNEL * KERNEL)
    tl.store(to + KERNEL * KERNEL, sum_v, mask=t < KERNEL * KERNEL)


@triton.jit
def encoding_gather_kernel(
    u, v, grads_ptr, grad_x, channels, rank, W, h, w, pixels, pixel_blocks, blocks,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: grad_x of BLOCK_C channels x BLOCK_P pixels, gathered from the positions whose windows hold them."""
    pid = tl.program_id(0)
    pixel = (pid % pixel_blocks).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)[None, :]
    c = (pid // pixel_blocks % blocks).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    n = (pid // pixel_blocks // blocks).to(tl.int64)
    keep_c = c < channels
    y, z = pixel // W, pixel % W
    positions = tl.full((), h, tl.int64) * w
    total = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for t in range(KERNEL * KERNEL):
        ty, tx = t // KERNEL, t % KERNEL
        down, right = y + (KERNEL - 1) // 2 - ty, z + (KERNEL - 1) // 2 - tx
        i, j = down // STRIDE, right // STRIDE
        reads = (pixel < pixels) & (down >= 0) & (right >= 0) & (i < h) & (j < w)
        if STRIDE > 1:
            reads = reads & (i * STRIDE == down) & (j * STRIDE == right)
        for r in range(rank):
            at = tl.full((), r, tl.int64)
            u_ptr = u.ptr + n * u.sn + at * u.sr + ty * u.sy + tx * u.sx + c * u.sc
            v_ptr = v.ptr + n * v.sn + at * v.sr + ty * v.sy + tx * v.sx + c * v.sc
            grad_ptr = grads_ptr + ((n * channels + c) * rank + at) * 2 * positions + (i * w + j)
            grad_u = tl.load(grad_ptr, mask=reads & keep_c, other=0.0)
            grad_v = tl.load(grad_ptr + positions, mask=reads & keep_c, other=0.0)
            total += grad_u * tl.load(u_ptr, mask=keep_c, other=0.0).to(ACC)
            total += grad_v * tl.load(v_ptr, mask=keep_c, other=0.0).to(ACC)
    out_ptr = grad_x.ptr + n * grad_x.sn + c * grad_x.sc + y * grad_x.sh + z * grad_x.sw
    tl.store(out_ptr, total.to(grad_x.ptr.dtype.element_ty), mask=(pixel < pixels) & keep_c)
