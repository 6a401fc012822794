# SPDX-License-Identifier: Apache-2.0
"""Keeps freed memory in the process, so that large tensors do not fault their pages in again at every allocation."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def tune_allocator() -> bool:
    """Make glibc reuse freed memory for large tensors; call it once, before the first large tensor.

    By default glibc maps every large block afresh and the kernel zeroes its pages at first touch, which can cost more than the
    operator that fills them. Afterwards memory once used stays with the process. The same from outside:
    ``GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615``.

    Returns:
        Whether the settings were accepted; False without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
