# SPDX-License-Identifier: Apache-2.0
"""The kernels under all dynamic-kernel operators, Triton. Equations and names: pyindexnet/reference/window.py.

Three kernels, all of them gathers; no normalised or shuffled map is written, there are no atomics:

* ``window_kernel``: a tile of channels of one group x output pixels; the taps one after another, the softmax online, so that a
  logit is read once per tile of channels.
* ``window_logits_kernel``: a tile of positions of the logits x taps, the sum over the group's channels in registers, then J^T;
  and what the third kernel needs of the softmax, its maximum and sum.
* ``window_x_kernel``: a tile of channels x pixels of x, which sums over the taps and sub-positions that read it.

Logits of rank d (RANK, pyindexnet/reference/affinity.py) are computed where they are used; affinity.py has the second kernel.
Sums are float32, float64 for float64, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(a):
    return 1.0 / (1.0 + tl.exp(-a))


@triton.jit
def _plane_ptr(image, n, g, c, CHANNELS_LAST: tl.constexpr):
    """Pointers to the first pixel of a tile's channels, broadcast along its pixels."""
    base = image.ptr + n * image.sn + g * image.sg
    return base + (c[None, :] if CHANNELS_LAST else c[:, None]) * image.sm


@triton.jit
def _along_pixels(a, CHANNELS_LAST: tl.constexpr):
    """A value of each pixel, broadcast along the channels of a tile."""
    return a[:, None] if CHANNELS_LAST else a[None, :]


@triton.jit
def _tile(pid, pixel_blocks, channel_blocks, groups, M, total, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
          BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """(n, g, channels, pixels, mask of the pixels, mask of the channels broadcast) of a program."""
    if CHANNELS_LAST:
        channel_block = pid % channel_blocks
        pixel_block = pid // channel_blocks % pixel_blocks
    else:
        pixel_block = pid % pixel_blocks
        channel_block = pid // pixel_blocks % channel_blocks
    plane = pid // (pixel_blocks * channel_blocks)
    c = channel_block.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel = pixel_block.to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    keep_c = c[None, :] < M if CHANNELS_LAST else c[:, None] < M
    return (plane // groups).to(tl.int64), (plane % groups).to(tl.int64), c, pixel, pixel < total, keep_c


@triton.jit
def logit(logits, n, g, t, sy, sx, i, j, keep_cells, keep, KERNEL: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """Raw logits of tap t and sub-position (sy, sx) of cells (i, j), which broadcast; 0 where not ``keep``.

    With a RANK, ``logits`` is an Affinity, t and (sy, sx) must be within their ranges, and ``keep_cells`` masks (i, j) alone.
    """
    if RANK == 0:
        offset = t * logits.st + sy * logits.sy + sx * logits.sx + i * logits.sh + j * logits.sw
        a = tl.load(logits.ptr + n * logits.sn + g * logits.sg + offset, mask=keep, other=0.0).to(ACC)
    else:
        map_ptr = logits.ptr + n * logits.sn + (i * logits.sh + j * logits.sw)
        p_ptr = logits.p_ptr + n * logits.p_sn + ((g * (KERNEL * KERNEL) + t) * (R * R) + sy * R + sx) * logits.p_sc
        a = tl.load(map_ptr, mask=keep_cells, other=0.0).to(ACC) * tl.load(p_ptr).to(ACC)
        for step in range(1, RANK):
            e = tl.full((), step, tl.int64)
            of_cell = tl.load(map_ptr + e * logits.sd, mask=keep_cells, other=0.0).to(ACC)
            a += of_cell * tl.load(p_ptr + e * logits.p_sd).to(ACC)
    return a


@triton.jit
def window_kernel(
    x,  # Planes (N, G, M, H, W)
    logits,  # Kernels (N, G, T, R, R, h, w), or an Affinity
    y,  # Planes (N, G, M, P, Q)
    groups,
    M,
    H,
    W,
    Q,
    pixels,  # P * Q
    pixel_blocks,
    channel_blocks,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    HOW: tl.constexpr,
    RANK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y = sum_t z_t x_t, BLOCK_M channels x BLOCK_P output pixels."""
    n, g, c, pixel, keep, keep_c = _tile(
        tl.program_id(0), pixel_blocks, channel_blocks, groups, M, pixels, CHANNELS_LAST, INDEX, BLOCK_M, BLOCK_P
    )
    p, q = pixel // Q, pixel % Q
    i, j = p // R, q // R
    sy, sx = p % R, q % R
    x_ptr = _plane_ptr(x, n, g, c, CHANNELS_LAST)
    u0 = i * STRIDE - (KERNEL - 1) // 2
    v0 = j * STRIDE - (KERNEL - 1) // 2

    top = tl.full((BLOCK_P,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_P,), ACC)
    if HOW == "softmax_sigmoid":  # not linear in the softmax, so that its sum must be known before
        for t in range(KERNEL * KERNEL):
            a = logit(logits, n, g, tl.full((), t, INDEX), sy, sx, i, j, keep, keep, KERNEL, R, RANK, ACC)
            higher = tl.maximum(top, a)
            total = total * tl.exp(top - higher) + tl.exp(a - higher)
            top = higher
    result = tl.zeros((BLOCK_P, BLOCK_M) if CHANNELS_LAST else (BLOCK_M, BLOCK_P), ACC)
    for t in range(KERNEL * KERNEL):
        a = logit(logits, n, g, tl.full((), t, INDEX), sy, sx, i, j, keep, keep, KERNEL, R, RANK, ACC)
        if HOW == "sigmoid":
            z = _sigmoid(a)
        elif HOW == "softmax":
            higher = tl.maximum(top, a)
            shrink = tl.exp(top - higher)
            z = tl.exp(a - higher)
            total = total * shrink + z
            top = higher
            result = result * _along_pixels(shrink, CHANNELS_LAST)
        elif HOW == "sigmoid_softmax":
            z = tl.exp(_sigmoid(a))
            total += z
        elif HOW == "softmax_sigmoid":
            z = _sigmoid(tl.exp(a - top) / total)
        else:
            tl.static_assert(HOW == "none")
            z = a
        u, v = u0 + t // KERNEL, v0 + t % KERNEL
        inside = keep & (u >= 0) & (u < H) & (v >= 0) & (v < W)
        offset = _along_pixels(u * x.sh + v * x.sw, CHANNELS_LAST)
        value = tl.load(x_ptr + offset, mask=_along_pixels(inside, CHANNELS_LAST) & keep_c, other=0.0).to(ACC)
        result += value * _along_pixels(z, CHANNELS_LAST)
    if HOW == "softmax" or HOW == "sigmoid_softmax":
        result = result * _along_pixels(1.0 / total, CHANNELS_LAST)
    y_ptr = _plane_ptr(y, n, g, c, CHANNELS_LAST) + _along_pixels(p * y.sh + q * y.sw, CHANNELS_LAST)
    tl.store(y_ptr, result.to(y.ptr.dtype.element_ty), mask=_along_pixels(keep, CHANNELS_LAST) & keep_c)


@triton.jit
def _softmax_rows(a, taps):
    """(softmax along the taps, maximum, sum)."""
    top = tl.max(tl.where(taps, a, float("-inf")), 1)
    e = tl.where(taps, tl.exp(a - top[:, None]), 0.0)
    total = tl.sum(e, 1)
    return e / total[:, None], top, total


@triton.jit
def _softmax_vjp(z, d):
    return z * (d - tl.sum(z * d, 1)[:, None])


@triton.jit
def normalize_rows(a, taps, HOW: tl.constexpr):
    """(z, result of the first of two stages, maximum and sum of the softmax) of logits with the taps in the second axis."""
    z = a
    first = a
    top, total = tl.sum(a, 1), tl.sum(a, 1)  # of the softmax, where there is one
    if HOW == "sigmoid":
        z = _sigmoid(a)
    elif HOW == "softmax":
        z, top, total = _softmax_rows(a, taps)
    elif HOW == "sigmoid_softmax":
        first = _sigmoid(a)
        z, top, total = _softmax_rows(first, taps)
    elif HOW == "softmax_sigmoid":
        first, top, total = _softmax_rows(a, taps)
        z = _sigmoid(first)
    return z, first, top, total


@triton.jit
def normalize_rows_vjp(z, first, d, HOW: tl.constexpr):
    """J^T d from the results of :func:`normalize_rows`."""
    if HOW == "sigmoid":
        d = d * (z * (1.0 - z))
    elif HOW == "softmax":
        d = _softmax_vjp(z, d)
    elif HOW == "sigmoid_softmax":
        d = _softmax_vjp(z, d) * (first * (1.0 - first))
    elif HOW == "softmax_sigmoid":
        d = _softmax_vjp(first, d * (z * (1.0 - z)))
    return d


@triton.jit
def pair(x, grad, n, g, tap, i, j, p, q, present, taps, M, H, W, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
         ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Sum over a group's channels of grad at (p, q) times the pixels under the window of (i, j): (BLOCK_P, BLOCK_T)."""
    u = (i * STRIDE - (KERNEL - 1) // 2)[:, None] + (tap // KERNEL)[None, :]
    v = (j * STRIDE - (KERNEL - 1) // 2)[:, None] + (tap % KERNEL)[None, :]
    inside = present[:, None] & taps & (u >= 0) & (u < H) & (v >= 0) & (v < W)
    x_ptr = x.ptr + n * x.sn + g * x.sg + (u * x.sh + v * x.sw)
    grad_ptr = grad.ptr + n * grad.sn + g * grad.sg + (p * grad.sh + q * grad.sw)
    d = tl.zeros((BLOCK_P, BLOCK_T), ACC)
    for m in range(M):
        channel = tl.full((), m, INDEX)
        dy = tl.load(grad_ptr + channel * grad.sm, mask=present, other=0.0).to(ACC)
        d += tl.load(x_ptr + channel * x.sm, mask=inside, other=0.0).to(ACC) * dy[:, None]
    return d


@triton.jit
def store_softmax(softmax_ptr, plane, p, q, present, top, total, P, Q):
    """What the gradient of x needs of the softmax."""
    size = P.to(tl.int64) * Q
    s_ptr = softmax_ptr + plane * 2 * size + (p * Q + q)
    tl.store(s_ptr, top, mask=present)
    tl.store(s_ptr + size, total, mask=present)


@triton.jit
def window_logits_kernel(
    x,  # Planes (N, G, M, H, W); None: the softmax alone
    logits,  # Kernels (N, G, T, R, R, h, w)
    grad,  # Planes (N, G, M, P, Q), gradient of y; None with x
    grad_logits,  # Kernels (N, G, T, R, R, h, w); None with x
    softmax_ptr,  # (N, G, 2, P, Q): maximum and sum; None: not needed
    groups,
    M,
    H,
    W,
    P,
    Q,
    grid_w,
    positions,  # of a plane of the logits: cells and their sub-positions, those that an odd output cuts off too
    blocks,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    HOW: tl.constexpr,
    DENSE: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """grad_logits = J^T sum_m grad x_t of BLOCK_P positions, their taps in the second axis of a tile."""
    pid = tl.program_id(0)
    plane = pid // blocks
    n, g = (plane // groups).to(tl.int64), (plane % groups).to(tl.int64)
    position = (pid % blocks).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    p, q = position // grid_w, position % grid_w
    i, j = p // R, q // R
    present = (position < positions) & (p < P) & (q < Q)
    tap = tl.arange(0, BLOCK_T)
    taps = (tap < KERNEL * KERNEL)[None, :]
    keep = present[:, None] & taps
    sy, sx, column, row = (p % R)[:, None], (q % R)[:, None], j[:, None], i[:, None]
    a = logit(logits, n, g, tap.to(INDEX)[None, :], sy, sx, row, column, present[:, None], keep, KERNEL, R, 0, ACC)
    z, first, top, total = normalize_rows(a, taps, HOW)
    if softmax_ptr is not None:
        store_softmax(softmax_ptr, plane.to(tl.int64), p, q, present, top, total, P, Q)

    if grad_logits is not None:
        d = pair(x, grad, n, g, tap, i, j, p, q, present, taps, M, H, W, KERNEL, STRIDE, ACC, INDEX, BLOCK_P, BLOCK_T)
        d = normalize_rows_vjp(z, first, d, HOW)
        # Logits of absent sub-positions have memory unless they are dense; their gradient is 0.
        d = tl.where(keep, d, 0.0).to(grad_logits.ptr.dtype.element_ty)
        offset = p % R * grad_logits.sy + q % R * grad_logits.sx + i * grad_logits.sh + j * grad_logits.sw
        out_ptr = grad_logits.ptr + n * grad_logits.sn + g * grad_logits.sg
        exists = keep if DENSE else (position < positions)[:, None] & taps
        tl.store(out_ptr + (offset[:, None] + tap.to(INDEX)[None, :] * grad_logits.st), d, mask=exists)


@triton.jit
def window_x_kernel(
    grad,  # Planes (N, G, M, P, Q), gradient of y
    logits,  # Kernels (N, G, T, R, R, h, w), or an Affinity
    softmax_ptr,  # (N, G, 2, P, Q) of window_logits_kernel, or None
    grad_x,  # Planes (N, G, M, H, W)
    groups,
    M,
    W,
    P,
    Q,
    h,
    w,
    pixels,  # H * W
    pixel_blocks,
    channel_blocks,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    HOW: tl.constexpr,
    RANK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad_x = sum over the taps and sub-positions that read a pixel of z grad, BLOCK_M channels x BLOCK_P pixels of x."""
    n, g, c, pixel, keep, keep_c = _tile(
        tl.program_id(0), pixel_blocks, channel_blocks, groups, M, pixels, CHANNELS_LAST, INDEX, BLOCK_M, BLOCK_P
    )
    u, v = pixel // W, pixel % W
    grad_base = _plane_ptr(grad, n, g, c, CHANNELS_LAST)
    size = P.to(tl.int64) * Q
    if softmax_ptr is not None:
        s_base = softmax_ptr + (n * groups + g) * 2 * size
    result = tl.zeros((BLOCK_P, BLOCK_M) if CHANNELS_LAST else (BLOCK_M, BLOCK_P), ACC)
    for t in range(KERNEL * KERNEL):
        # The cell whose tap t reads the pixel, if there is one.
        down, right = u + (KERNEL - 1) // 2 - t // KERNEL, v + (KERNEL - 1) // 2 - t % KERNEL
        i, j = down // STRIDE, right // STRIDE
        reads = keep & (down >= 0) & (right >= 0) & (i < h) & (j < w)
        if STRIDE > 1:
            reads = reads & (i * STRIDE == down) & (j * STRIDE == right)
        for sub in range(R * R):
            sy, sx = tl.full((), sub // R, INDEX), tl.full((), sub % R, INDEX)
            p, q = i * R + sy, j * R + sx
            inside = reads & (p < P) & (q < Q)
            z = logit(logits, n, g, tl.full((), t, INDEX), sy, sx, i, j, inside, inside, KERNEL, R, RANK, ACC)
            if HOW == "sigmoid" or HOW == "sigmoid_softmax":
                z = _sigmoid(z)
            if softmax_ptr is not None:
                top = tl.load(s_base + (p * Q + q), mask=inside, other=0.0)
                total = tl.load(s_base + size + (p * Q + q), mask=inside, other=1.0)
                z = tl.exp(z - top) / total
            if HOW == "softmax_sigmoid":
                z = _sigmoid(z)
            offset = _along_pixels(p * grad.sh + q * grad.sw, CHANNELS_LAST)
            dy = tl.load(grad_base + offset, mask=_along_pixels(inside, CHANNELS_LAST) & keep_c, other=0.0).to(ACC)
            result += dy * _along_pixels(z, CHANNELS_LAST)
    out_ptr = _plane_ptr(grad_x, n, g, c, CHANNELS_LAST) + _along_pixels(u * grad_x.sh + v * grad_x.sw, CHANNELS_LAST)
    tl.store(out_ptr, result.to(grad_x.ptr.dtype.element_ty), mask=_along_pixels(keep, CHANNELS_LAST) & keep_c)
