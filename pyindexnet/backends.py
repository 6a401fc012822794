# SPDX-License-Identifier: Apache-2.0
"""Which code runs an operator: names, reasons, choice.

Backends: ``reference`` (plain PyTorch, any device), ``cpu`` and ``cuda`` (the extension ``pyindexnet._C``), ``triton``. Per
call, in this order: the argument ``backend=``; :func:`use_backend`; the environment variable ``PYINDEXNET_BACKEND``; else the
first in :data:`ORDER` whose :func:`why_not` is None. A forced backend that cannot run raises :class:`BackendError` with the
reason. The automatic choice logs the reasons of the backends that it passed over at debug level (logger
``pyindexnet.backends``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "cuda", "triton")
#: Automatic choice, best first: cpu before reference as measured (docs/performance.md), cuda before triton until a GPU tells.
ORDER = ("cpu", "cuda", "triton", "reference")

_log = logging.getLogger(__name__)
_predicates: dict[tuple[str, str], Callable[..., str | None]] = {}
_forced: str | None = None


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run this call."""


def _check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def register(op: str, backend: str, why_not: Callable[..., str | None]) -> None:
    """Tell how to find out whether ``backend`` can run ``op`` on given tensors."""
    _predicates[op, _check_name(backend, "register: backend")] = why_not


def operators() -> list[str]:
    """All registered operators."""
    return sorted({op for op, _ in _predicates})


def why_not(op: str, backend: str, *tensors: Tensor) -> str | None:
    """None where ``backend`` can run ``op`` on these tensors, else the reason why it cannot.

    Without tensors: whether it can run at all on this machine.

    Raises:
        ValueError: unknown operator or backend.
    """
    _check_name(backend, "why_not: backend")
    predicate = _predicates.get((op, backend))
    if predicate is None:
        if op not in operators():
            raise ValueError(f"why_not: op must be one of {', '.join(operators())}, got {op!r}")
        return f"{op} has no {backend} kernel"
    return predicate(*tensors)


def forced() -> str | None:
    """The backend set by :func:`use_backend` or ``PYINDEXNET_BACKEND``, if any."""
    if _forced is not None:
        return _forced
    name = os.environ.get("PYINDEXNET_BACKEND", "")
    return _check_name(name, "PYINDEXNET_BACKEND") if name else None


def choose(op: str, *tensors: Tensor, backend: str | None = None) -> str:
    """The backend that runs ``op`` on these tensors.

    Raises:
        BackendError: the named backend cannot run this call. ValueError: unknown name.
    """
    name = _check_name(backend, f"{op}: backend") if backend is not None else forced()
    if name is not None:
        reason = why_not(op, name, *tensors)
        if reason is not None:
            raise BackendError(f"{op}: backend {name} cannot run: {reason}")
        return name
    for name in ORDER:
        reason = why_not(op, name, *tensors)
        if reason is None:
            return name
        if not torch.compiler.is_compiling():
            _log.debug("%s: not %s: %s", op, name, reason)
    raise BackendError(f"{op}: no backend can run on {tensors[0].device}")


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force a backend for all calls in the ``with`` block, in every thread; None: as if there were no other block.

    Raises:
        ValueError: unknown name.
    """
    global _forced
    if name is not None:
        _check_name(name, "use_backend: name")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
