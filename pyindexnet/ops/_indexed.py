# SPDX-License-Identifier: Apache-2.0
"""Argument checks that the indexed operators share."""

from __future__ import annotations

from torch import Tensor

from ..reference.normalization import NORMALIZATIONS
from ._common import check_choice, check_same, check_tensor
from ._register import Sizes, check_image

RATIOS = (2, 3, 4)


def check_options(op: str, ratio: int, normalization: str) -> None:
    check_choice(op, "ratio", ratio, RATIOS)
    check_choice(op, "normalization", normalization, NORMALIZATIONS)


def check_logits(op: str, x: Tensor, logits: Tensor, ratio: int, h: int, w: int) -> None:
    """logits against the channels of x and the low-resolution size (h, w)."""
    check_tensor(op, "logits", logits, ("N", "Ci", "K", "h", "w"))
    n, c = x.shape[:2]
    ci = logits.shape[1]
    if tuple(logits.shape) != (n, ci, ratio * ratio, h, w) or (ci != 1 and ci != c):
        raise ValueError(
            f"{op}: logits must be {(n, c, ratio * ratio, h, w)} or {(n, 1, ratio * ratio, h, w)}, got {tuple(logits.shape)}"
        )
    check_same(op, "logits", logits, x)


def pooled_sizes(op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Sizes:
    """Checks the arguments of a pooling; the size of the pooled map."""
    check_options(op, ratio, normalization)
    check_image(op, "x", x)
    h, w = (-(-side // ratio) for side in x.shape[2:])
    check_logits(op, x, logits, ratio, h, w)
    return ((*x.shape[:2], h, w),)
