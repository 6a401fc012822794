# SPDX-License-Identifier: Apache-2.0
"""Checks of options and of maps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor

from pyindexnet.ops._common import autocasts
from pyindexnet.ops._register import check_image


def require_one_of(owner: str, option: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError, naming ``value`` and what is allowed, unless ``value`` is one of ``allowed``, of the same type too.

    True == 1 and 3.0 == 3: neither is an integer choice, nor is 1 a boolean one.
    """
    allowed = tuple(allowed)
    if not any(_is_choice(value, choice) for choice in allowed):
        raise ValueError(f"{owner}: {option} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _is_choice(value: object, choice: object) -> bool:
    return isinstance(value, type(choice)) and isinstance(value, bool) == isinstance(choice, bool) and value == choice


def require_count(owner: str, option: str, value: object, *, odd: bool = False) -> None:
    """Raise ValueError, naming ``value``, unless it is a whole number from 1, and odd where that is asked; no boolean."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (odd and value % 2 == 0):
        kind = "an odd number" if odd else "a whole number"
        raise ValueError(f"{owner}: {option} must be {kind} from 1, got {value!r}")


def require_number(owner: str, option: str, value: object, *, low: float = -math.inf, open: bool = False) -> None:
    """Raise ValueError, naming ``value``, unless it is a finite number from ``low``, or above it where ``open``; no boolean."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < low or (open and value == low):  # type: ignore[operator]
        bound = "" if low == -math.inf else f" {'above' if open else 'from'} {low:g}"
        raise ValueError(f"{owner}: {option} must be a finite number{bound}, got {value!r}")


def require_map(owner: str, name: str, x: Tensor, channels: int | None, weight: Tensor) -> None:
    """Raise unless ``x`` is a floating (N, channels, H, W) that a module with ``weight`` takes; None: of any channels.

    Its dtype is that of ``weight``; under autocast, which leaves float64 alone, both may be any other.

    Raises:
        TypeError: no tensor. ValueError: another shape or dtype, or a side of 0; N may be 0.
    """
    if isinstance(x, Tensor) and channels is not None and (x.dim() != 4 or x.shape[1] != channels):
        raise ValueError(f"{owner}: {name} must be (N, {channels}, H, W), got {tuple(x.shape)}")
    check_image(owner, name, x)
    if x.dtype != weight.dtype and (not autocasts(x) or torch.float64 in (x.dtype, weight.dtype)):
        raise ValueError(f"{owner}: {name} must have the dtype of the module, {weight.dtype}, got {x.dtype}")
