# SPDX-License-Identifier: Apache-2.0
"""What the affinity-aware operators share: the check of (a, p) and the logits that these stand for."""

from __future__ import annotations

from torch import Tensor

from ..reference.affinity import MAX_RANK, affinity_jvp, affinity_logits, affinity_second, affinity_vjp
from ._common import check_same, check_tensor
from ._window import Source

#: Logits of low rank.
AFFINITY = Source(affinity_logits, affinity_vjp, affinity_jvp, affinity_second)


def check_affinity(op: str, x: Tensor, a: Tensor, p: Tensor, channels: int, h: int, w: int) -> None:
    """The affinity and the generator against x, the channels of the logits and the size of their grid."""
    check_tensor(op, "a", a, ("N", "d", "h", "w"))
    rank = a.shape[1]
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{op}: a must have a rank d within 1..{MAX_RANK}, got {rank}")
    want = (x.shape[0], rank, h, w)
    if tuple(a.shape) != want:
        raise ValueError(f"{op}: a must be {want}, got {tuple(a.shape)}")
    check_same(op, "a", a, x)
    check_tensor(op, "p", p, ("N or 1", "d", "channels"))
    # In this order: with a batch of dynamic size, the first comparison needs no value.
    if (p.shape[0] != x.shape[0] and p.shape[0] != 1) or p.shape[1] != rank or p.shape[2] != channels:
        raise ValueError(f"{op}: p must be ({x.shape[0]} or 1, {rank}, {channels}), got {tuple(p.shape)}")
    check_same(op, "p", p, x)
