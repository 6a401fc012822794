# SPDX-License-Identifier: Apache-2.0
"""Gradients of the affinity map and of its generator, Triton. Equations: pyindexnet/reference/affinity.py.

A program owns a tile of cells with all groups, sub-positions and taps: the gradient of its logits stays in registers and gives
the tile's grad_a; its share of grad_p goes to a row of ``parts`` of its own, which the launcher adds up. No atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .window import logit, normalize_rows, normalize_rows_vjp, pair, store_softmax


@triton.jit
def affinity_kernel(
    x,  # Planes (N, G, M, H, W); None: the softmax alone
    logits,  # Affinity
    grad,  # Planes (N, G, M, P, Q), gradient of y; None with x
    grad_a,  # Map (N, d, h, w), or None
    parts_ptr,  # (N, blocks, d, G * T * R * R), or None
    softmax_ptr,  # (N, G, 2, P, Q): maximum and sum; None: not needed
    groups,
    M,
    H,
    W,
    P,
    Q,
    w,
    cells,
    blocks,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    R: tl.constexpr,
    HOW: tl.constexpr,
    RANK: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_a of BLOCK_P cells and their share of grad_p, the taps in the second axis of a tile."""
    pid = tl.program_id(0)
    n, block = (pid // blocks).to(tl.int64), pid % blocks
    cell = block.to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    i, j, exists = cell // w, cell % w, cell < cells
    tap, rank = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    taps = (tap < KERNEL * KERNEL)[None, :]
    # A load of the generator has no mask: taps beyond the last read the first.
    t = tl.where(tap < KERNEL * KERNEL, tap, 0).to(INDEX)
    map_ptr = logits.ptr + n * logits.sn + (i * logits.sh + j * logits.sw)
    sums = tl.zeros((BLOCK_P, BLOCK_D), ACC)
    for group in range(groups):
        g = tl.full((), group, tl.int64)
        for sub in range(R * R):
            sy, sx = tl.full((), sub // R, INDEX), tl.full((), sub % R, INDEX)
            p, q = i * R + sy, j * R + sx
            present = exists & (p < P) & (q < Q)
            keep = present[:, None] & taps
            a = logit(logits, n, g, t[None, :], sy, sx, i[:, None], j[:, None], exists[:, None], keep, KERNEL, R, RANK, ACC)
            z, first, top, total = normalize_rows(a, taps, HOW)
            if softmax_ptr is not None:
                store_softmax(softmax_ptr, n * groups + g, p, q, present, top, total, P, Q)
            if x is not None:
                d = pair(x, grad, n, g, tap, i, j, p, q, present, taps, M, H, W, KERNEL, STRIDE, ACC, INDEX, BLOCK_P, BLOCK_T)
                d = tl.where(keep, normalize_rows_vjp(z, first, d, HOW), 0.0)
                channel = (g * (KERNEL * KERNEL) + t) * (R * R) + sub
                for step in range(RANK):
                    e = tl.full((), step, tl.int64)
                    if grad_a is not None:
                        of_tap = tl.load(logits.p_ptr + n * logits.p_sn + e * logits.p_sd + channel * logits.p_sc).to(ACC)
                        sums += tl.sum(d * of_tap[None, :], 1)[:, None] * (rank == e).to(ACC)[None, :]
                    if parts_ptr is not None:
                        of_cell = tl.load(map_ptr + e * logits.sd, mask=exists, other=0.0).to(ACC)
                        share = tl.sum(d * of_cell[:, None], 0)
                        row = (n * blocks + block) * RANK + e
                        channels = groups * (KERNEL * KERNEL * R * R)
                        tl.store(parts_ptr + row * channels + channel, share, mask=tap < KERNEL * KERNEL)
    if grad_a is not None:
        offset = (i * grad_a.sh + j * grad_a.sw)[:, None] + rank.to(INDEX)[None, :] * grad_a.sd
        keep = exists[:, None] & (rank < RANK)[None, :]
        tl.store(grad_a.ptr + n * grad_a.sn + offset, sums.to(grad_a.ptr.dtype.element_ty), mask=keep)
