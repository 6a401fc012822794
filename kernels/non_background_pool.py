# SPDX-License-Identifier: Apache-2.0
"""non_background_pool, Triton. Equation and symbols: pyindexnet/reference/non_background_pool.py.

A program owns whole maps: it marches down their columns, a tile of columns and channels at a time, then along their rows, with
the suffix and prefix sums of csrc/common/window_sum.h, so the cost of a pixel does not depend on the window. Between the passes
the maps lie in scratch memory of the program: two planes for each of its channels at a time. All windows are one launch; v is
computed once per program and shared by its channels. x is read twice, the second time soon after the first, and y written once;
the scratch memory takes ten accesses per pixel, so it must stay in the L2 cache. The CUDA kernel keeps it in shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .index_cell_launch import _image, _is_wide, empty_image

#: Lines (columns, rows, pixels) and channels of a tile, by whether the output is channels_last.
_TILES = {False: (128, 2), True: (32, 8)}
_WARPS = 4
#: Tiles of channels of a program, which share its v and its scratch memory.
_SHARED = 4


@triton.jit
def _product(value_ptr, value_step, scale_ptr, scale_step, e, keep, ACC: tl.constexpr):
    value = tl.load(value_ptr + e * value_step, mask=keep, other=0.0).to(ACC)
    if scale_ptr is not None:
        value *= tl.load(scale_ptr + e * scale_step, mask=keep, other=0.0).to(ACC)
    return value


@triton.jit
def _line_sums(
    value_ptr, value_step, scale_ptr, scale_step, sum_ptr, sum_step, keep, size, r, ACC: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """sum <- sums over windows of 2 r + 1 of value * scale, along a tile of lines of ``size`` elements; r < size."""
    k = 2 * r + 1
    for start in range(0, size, k):
        stop = tl.minimum(start + k, size)
        # Position p of a line is element p - r.
        last = tl.minimum(start + k, size + r)
        first = tl.maximum(start, r)
        begin = tl.minimum(tl.maximum(first, stop), last)
        total = tl.zeros(keep.shape, dtype=ACC)
        for step in range(last - begin):  # beyond the last window's start
            e = (last - 1 - r).to(INDEX) - step
            total += _product(value_ptr, value_step, scale_ptr, scale_step, e, keep, ACC)
        for step in range(begin - first):
            e = (begin - 1 - r).to(INDEX) - step
            total += _product(value_ptr, value_step, scale_ptr, scale_step, e, keep, ACC)
            tl.store(sum_ptr + (e + r) * sum_step, total, mask=keep)
        for step in range(start, tl.minimum(first, stop)):  # windows that begin before the first element
            tl.store(sum_ptr + tl.full((), step, INDEX) * sum_step, total, mask=keep)
        tl.debug_barrier()  # another thread may hold the lane when it is read again
        total = tl.zeros(keep.shape, dtype=ACC)
        reach = tl.minimum(stop, tl.maximum(size - r, start + 1))
        for step in range(start + 1, reach):
            p = tl.full((), step, INDEX)
            total += _product(value_ptr, value_step, scale_ptr, scale_step, p + r, keep, ACC)
            tl.store(sum_ptr + p * sum_step, tl.load(sum_ptr + p * sum_step, mask=keep, other=0.0) + total, mask=keep)
        for step in range(reach, stop):
            p = tl.full((), step, INDEX)
            tl.store(sum_ptr + p * sum_step, tl.load(sum_ptr + p * sum_step, mask=keep, other=0.0) + total, mask=keep)
    tl.debug_barrier()


@triton.jit
def _map_sums(
    ptr, sh, sw, scale_ptr, scale_sh, scale_sw, keep_c, columns_ptr, sums_ptr, H, W, k,
    ACC: tl.constexpr, INDEX: tl.constexpr, LINES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums <- window sums of a map times a scale in BLOCK_C channels; ``ptr``: of each channel, ``columns``: scratch memory."""
    lane = tl.arange(0, LINES)[:, None]
    plane = tl.arange(0, BLOCK_C)[None, :].to(INDEX) * H * W
    for j0 in range(0, W, LINES):
        j = tl.full((), j0, INDEX) + lane
        keep = (j < W) & keep_c
        scale = None
        if scale_ptr is not None:
            scale = scale_ptr + j * scale_sw
        r = tl.minimum(k // 2, H - 1)
        _line_sums(ptr + j * sw, sh, scale, scale_sh, columns_ptr + plane + j, W, keep, H, r, ACC, INDEX)
    for i0 in range(0, H, LINES):
        i = tl.full((), i0, INDEX) + lane
        keep = (i < H) & keep_c
        r = tl.minimum(k // 2, W - 1)
        _line_sums(columns_ptr + plane + i * W, 1, None, 0, sums_ptr + plane + i * W, 1, keep, W, r, ACC, INDEX)


@triton.jit
def _add(into, value, first, keep):
    """into <- value where ``first``, else into + value."""
    if first:
        tl.store(into, value, mask=keep)
    else:
        tl.store(into, tl.load(into, mask=keep, other=0.0) + value, mask=keep)


@triton.jit
def _window(s, sizes, WINDOWS: tl.constexpr):
    k = sizes[0]
    for w in tl.static_range(1, WINDOWS):
        k = tl.where(s == w, sizes[w], k)
    return k


@triton.jit
def _inverse(mask, n, columns_ptr, sums_ptr, v_ptr, H, W, k, EPS: tl.constexpr, INCLUDE_PAD: tl.constexpr,
             ACC: tl.constexpr, INDEX: tl.constexpr, LINES: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """v <- 1 / (S(m) + eps n)."""
    first = tl.arange(0, BLOCK_C)[None, :] == 0
    mask_ptr = mask.ptr + n * mask.sn + tl.zeros((1, BLOCK_C), dtype=tl.int32)
    _map_sums(mask_ptr, mask.sh, mask.sw, None, 0, 0, first, columns_ptr, sums_ptr, H, W, k, ACC, INDEX, LINES, BLOCK_C)
    lane = tl.arange(0, LINES)
    for start in range(0, H * W, LINES):
        p = tl.full((), start, INDEX) + lane
        i, j = p // W, p % W
        r = k // 2
        if INCLUDE_PAD:
            count = (k * k).to(ACC) + tl.zeros((LINES,), dtype=ACC)
        else:
            rows = tl.minimum(i + r, H - 1) - tl.maximum(i - r, 0) + 1
            count = rows.to(ACC) * (tl.minimum(j + r, W - 1) - tl.maximum(j - r, 0) + 1).to(ACC)
        total = tl.load(sums_ptr + p, mask=p < H * W, other=0.0) + tl.full((), EPS, ACC) * count
        tl.store(v_ptr + p, 1.0 / tl.where(p < H * W, total, 1.0), mask=p < H * W)
    tl.debug_barrier()


@triton.jit
def pool_kernel(
    x, grad, out, mask, scratch_ptr, v_ptr, partial_ptr,
    chunk, H, W, groups, group, sizes,
    EPS: tl.constexpr, INCLUDE_PAD: tl.constexpr, WINDOWS: tl.constexpr, BACKWARD: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, LINES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: ``group`` channels of one chunk and image. BACKWARD: out is grad_x; partial [.., 2, H, W] and v [.., H, W]
    receive, per program, sum_c x u, sum_c g y and v."""
    pid = tl.program_id(0)
    g = pid % groups
    s = pid // groups % WINDOWS
    n = (pid // groups // WINDOWS).to(tl.int64)
    k = _window(s, sizes, WINDOWS)
    size = tl.full((), H, INDEX) * W
    columns_ptr = scratch_ptr + pid.to(tl.int64) * (2 * BLOCK_C + 1) * size
    sums_ptr = columns_ptr + BLOCK_C * size
    if v_ptr is None:
        v = sums_ptr + BLOCK_C * size
    else:
        v = v_ptr + pid.to(tl.int64) * size
    _inverse(mask, n, columns_ptr, sums_ptr, v, H, W, k, EPS, INCLUDE_PAD, ACC, INDEX, LINES, BLOCK_C)

    lane = tl.arange(0, LINES)[:, None]
    plane = tl.arange(0, BLOCK_C)[None, :].to(INDEX) * size
    m = mask.ptr + n * mask.sn
    for begin in range(g * group, tl.minimum((g + 1) * group, chunk), BLOCK_C):
        within = begin + tl.arange(0, BLOCK_C)[None, :]
        keep_c = within < tl.minimum((g + 1) * group, chunk)
        c = (s * chunk + within).to(INDEX)
        x_ptr = x.ptr + n * x.sn + c * x.sc
        if BACKWARD:
            grad_ptr = grad.ptr + n * grad.sn + c * grad.sc
            _map_sums(grad_ptr, grad.sh, grad.sw, v, W, 1, keep_c, columns_ptr, sums_ptr, H, W, k, ACC, INDEX, LINES, BLOCK_C)
        else:
            _map_sums(
                x_ptr, x.sh, x.sw, m, mask.sh, mask.sw, keep_c, columns_ptr, sums_ptr, H, W, k, ACC, INDEX, LINES, BLOCK_C
            )
        for start in range(0, size, LINES):
            p = tl.full((), start, INDEX) + lane
            i, j = p // W, p % W
            keep = (p < size) & keep_c
            total = tl.load(sums_ptr + plane + p, mask=keep, other=0.0)
            if BACKWARD:
                scale = tl.load(m + i * mask.sh + j * mask.sw, mask=p < size, other=0.0).to(ACC)
            else:
                scale = tl.load(v + p, mask=p < size, other=0.0)
            if out is not None:
                out_ptr = out.ptr + n * out.sn + c * out.sc + i * out.sh + j * out.sw
                tl.store(out_ptr, (total * scale).to(out.ptr.dtype.element_ty), mask=keep)
            if partial_ptr is not None:
                other = tl.load(x_ptr + i * x.sh + j * x.sw, mask=keep, other=0.0).to(ACC)
                into = partial_ptr + pid.to(tl.int64) * 2 * size + p
                _add(into, tl.sum(total * other, 1)[:, None], begin == g * group, p < size)
        tl.debug_barrier()  # the sums have been read
        if partial_ptr is not None:
            _map_sums(
                x_ptr, x.sh, x.sw, m, mask.sh, mask.sw, keep_c, columns_ptr, sums_ptr, H, W, k, ACC, INDEX, LINES, BLOCK_C
            )
            for start in range(0, size, LINES):
                p = tl.full((), start, INDEX) + lane
                i, j = p // W, p % W
                keep = (p < size) & keep_c
                y = tl.load(sums_ptr + plane + p, mask=keep, other=0.0) * tl.load(v + p, mask=p < size, other=0.0)
                other = tl.load(grad_ptr + i * grad.sh + j * grad.sw, mask=keep, other=0.0).to(ACC)
                into = partial_ptr + (pid.to(tl.int64) * 2 + 1) * size + p
                _add(into, tl.sum(y * other, 1)[:, None], begin == g * group, p < size)
            tl.debug_barrier()


@triton.jit
def mask_kernel(
    grad_mask, scratch_ptr, v_ptr, partial_ptr, H, W, groups, sizes, MOST: tl.constexpr, WINDOWS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of the mask in one image, from the partial sums of all windows and groups."""
    n = tl.program_id(0).to(tl.int64)
    size = tl.full((), H, INDEX) * W
    product_ptr = scratch_ptr + n * 4 * size
    lane = tl.arange(0, LINES)[:, None]
    for s in range(WINDOWS):
        k = _window(s, sizes, WINDOWS)
        first = (n * WINDOWS + s) * groups
        for start in range(0, size, LINES):
            p = tl.full((), start, INDEX) + lane
            total = tl.zeros((LINES, 1), dtype=ACC)
            for g in range(groups):
                total += tl.load(partial_ptr + ((first + g) * 2 + 1) * size + p, mask=p < size, other=0.0)
            v = tl.load(v_ptr + first * size + p, mask=p < size, other=0.0)
            tl.store(product_ptr + p, total * v, mask=p < size)
        tl.debug_barrier()
        one = tl.full((1, 1), 1, tl.int1)
        line_ptr = product_ptr + tl.zeros((1, 1), dtype=tl.int32)
        _map_sums(line_ptr, W, 1, None, 0, 0, one, product_ptr + size, product_ptr + 2 * size, H, W, k, ACC, INDEX, LINES, 1)
        for start in range(0, size, LINES):
            p = tl.full((), start, INDEX) + lane
            keep = p < size
            total = -tl.load(product_ptr + 2 * size + p, mask=keep, other=0.0)
            for g in range(groups):
                total += tl.load(partial_ptr + (first + g) * 2 * size + p, mask=keep, other=0.0)
            _add(product_ptr + 3 * size + p, total, s == 0, keep)
        tl.debug_barrier()
    for start in range(0, size, LINES):
        p = tl.full((), start, INDEX) + lane
        total = tl.load(product_ptr + 3 * size + p, mask=p < size, other=0.0)
        out_ptr = grad_mask.ptr + n * grad_mask.sn + p // W * grad_mask.sh + p % W * grad_mask.sw
        tl.store(out_ptr, tl.minimum(tl.maximum(total, -MOST), MOST).to(grad_mask.ptr.dtype.element_ty), mask=p < size)


def _launch(
    x: Tensor,
    mask: Tensor,
    sizes: Sequence[int],
    eps: float,
    count_include_pad: bool,
    out: Tensor | None,
    grad: Tensor | None = None,
    grad_mask: Tensor | None = None,
) -> None:
    n, channels, height, width = x.shape
    if n == 0:
        return
    chunk, size = channels // len(sizes), height * width
    layout = out if out is not None else x
    lines, most = _TILES[layout.stride(1) == 1 and channels > 1]
    block_c = min(triton.next_power_of_2(chunk), most)
    group = block_c * _SHARED
    groups = triton.cdiv(chunk, group)
    programs = n * len(sizes) * groups
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = any(t is not None and _is_wide(t) for t in (x, mask, grad, grad_mask, out)) or size * block_c >= 2**30
    shared: dict[str, Any] = {
        "WINDOWS": len(sizes),
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
        "INDEX": tl.int64 if wide else tl.int32,
        "LINES": lines,
        "num_warps": _WARPS,
        "maxnreg": 128,  # or ptxas spills in favour of more warps than the scratch memory has work for
    }

    def scratch(elements: int) -> Tensor:
        return torch.empty(elements, dtype=acc, device=x.device)

    v = partial = None
    if grad_mask is not None:
        v, partial = scratch(programs * size), scratch(programs * 2 * size)
    with torch.cuda.device_of(x):
        pool_kernel[(programs,)](
            _image(x),
            _image(grad),
            _image(out),
            _image(mask),
            scratch(programs * (2 * block_c + 1) * size),
            v,
            partial,
            chunk,
            height,
            width,
            groups,
            group,
            tuple(sizes),
            EPS=eps,
            INCLUDE_PAD=count_include_pad,
            BACKWARD=grad is not None,
            BLOCK_C=block_c,
            **shared,
        )
        if grad_mask is not None:
            mask_kernel[(n,)](
                _image(grad_mask),
                scratch(n * 4 * size),
                v,
                partial,
                height,
                width,
                groups,
                tuple(sizes),
                MOST=torch.finfo(x.dtype).max,
                **shared,
            )


def non_background_pool(x: Tensor, mask: Tensor, kernel_size: Sequence[int], eps: float, count_include_pad: bool) -> Tensor:
    """y = v S(m x), (N, C, H, W)."""
    y = empty_image(x, *x.shape[2:])
    _launch(x, mask, kernel_size, eps, count_include_pad, y)
    return y


def non_background_pool_backward(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel_size: Sequence[int],
    eps: float,
    count_include_pad: bool,
    need_x: bool,
    need_mask: bool,
) -> tuple[Tensor, Tensor]:
    """grad_x = m u, grad_mask = sum_c x u - S(v sum_c g y) with u = S(v g); an output that is not needed is empty."""
    grad_x = empty_image(x, *x.shape[2:]) if need_x else None
    grad_mask = torch.empty_like(mask) if need_mask else None
    if need_x or need_mask:
        _launch(x, mask, kernel_size, eps, count_include_pad, grad_x, grad, grad_mask)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_mask is None else grad_mask,
    )
