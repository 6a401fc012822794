# SPDX-License-Identifier: Apache-2.0
"""What affinity_map and affinity_moments share: checks of the features and the encoding kernels."""

from __future__ import annotations

from torch import Tensor

from ..reference.affinity import MAX_RANK
from ._common import check_choice, check_same, check_tensor
from ._register import check_image

STRIDES = (1, 2, 3, 4)
MAX_KERNEL = 14  # kMaxKernel of csrc/common/window.h


def check_encoding(op: str, x: Tensor, u: Tensor, v: Tensor, stride: int) -> None:
    """Features and both sets of kernels."""
    check_choice(op, "stride", stride, STRIDES)
    check_image(op, "x", x)
    for name, kernel in (("u", u), ("v", v)):
        check_tensor(op, name, kernel, ("Nu", "Cu", "d", "k", "k"))
    samples, channels, rank, height, width = u.shape
    n, c = x.shape[:2]
    # Equality with N first: an exported program with a dynamic batch must not decide whether it is 1.
    if samples != n and samples != 1:
        raise ValueError(f"{op}: u must be for {n} samples or for 1, got {samples}")
    if channels != c and channels != 1:
        raise ValueError(f"{op}: u must be for {c} channels or for 1, got {channels}")
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{op}: u must have a rank within 1..{MAX_RANK}, got {rank}")
    if height != width or not 1 <= height <= MAX_KERNEL:
        raise ValueError(f"{op}: u must have square kernels of size 1..{MAX_KERNEL}, got {height} x {width}")
    if v.shape != u.shape:
        raise ValueError(f"{op}: v must be {tuple(u.shape)}, as u, got {tuple(v.shape)}")
    check_same(op, "u", u, x)
    check_same(op, "v", v, x)
