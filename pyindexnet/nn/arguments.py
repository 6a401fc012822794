# SPDX-License-Identifier: Apache-2.0
"""Checks of options."""

from __future__ import annotations

from collections.abc import Iterable


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
