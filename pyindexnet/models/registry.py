# SPDX-License-Identifier: Apache-2.0
"""Models by name: a model file registers its builder, users call :func:`create_model`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from pyindexnet.models.fuse import fuse

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated class or function under ``name`` for :func:`create_model`.

    Its keyword parameters are the model's options; it raises ValueError for a value that is not allowed. A class gets
    :func:`~pyindexnet.models.fuse` as a method.
    """

    def register(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ValueError(f"register_model: name must be new, got {name!r}")
        _BUILDERS[name] = builder
        if isinstance(builder, type):
            builder.fuse = fuse  # type: ignore[attr-defined]
        return builder

    return register


def list_models() -> list[str]:
    """Names that :func:`create_model` accepts, sorted."""
    return sorted(_BUILDERS)


def model_options(name: str) -> dict[str, Any]:
    """Options of a model and their defaults, in the order of its signature.

    Raises:
        ValueError: no model has this name.
    """
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a model with freshly initialised weights.

    Args:
        name: one of :func:`list_models`.
        **options: the model's own options, see :func:`model_options` and the docstring of its class.
    Returns:
        The model, in training mode, on the default device; ``model.config`` holds ``name`` and ``options``.
    Raises:
        ValueError: an unknown name or option, or a value that the model does not allow; the message names the value and
            what is allowed.
    """
    builder = _builder(name)
    allowed = model_options(name)
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"create_model: option of {name} must be one of {', '.join(allowed)}, got {option!r}"
                + _suggest(option, list(allowed))
            )
    model = builder(**options)
    model.config = {"name": name, "options": options}  # type: ignore[assignment]
    return model


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _BUILDERS:
        raise ValueError(
            f"create_model: name must be one of {', '.join(list_models())}, got {name!r}" + _suggest(name, list_models())
        )
    return _BUILDERS[name]


def _suggest(word: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
