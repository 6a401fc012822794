# SPDX-License-Identifier: Apache-2.0
"""The check of an option that has a fixed set of values."""

from __future__ import annotations

from collections.abc import Iterable


def require_one_of(owner: str, option: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError, naming ``value`` and what is allowed, unless ``value`` is one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{owner}: {option} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
