# SPDX-License-Identifier: Apache-2.0
"""Argument checks that the indexed operators share."""

from __future__ import annotations

from torch import Tensor

from ..reference.normalization import NORMALIZATIONS
from ._common import check_choice, check_same, check_tensor

RATIOS = (2, 3, 4)


def check_options(op: str, ratio: int, normalization: str) -> None:
    check_choice(op, "ratio", ratio, RATIOS)
    check_choice(op, "normalization", normalization, NORMALIZATIONS)


def check_image(op: str, name: str, x: Tensor) -> None:
    check_tensor(op, name, x, ("N", "C", "H", "W"))
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{op}: {name} must have C, H and W of at least 1, got {tuple(x.shape)}")


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


def check_grad(op: str, name: str, grad: Tensor, x: Tensor, size: tuple[int, ...]) -> None:
    check_tensor(op, name, grad, ("N", "C", "H", "W"))
    if tuple(grad.shape) != size:
        raise ValueError(f"{op}: {name} must be {size}, got {tuple(grad.shape)}")
    check_same(op, name, grad, x)
