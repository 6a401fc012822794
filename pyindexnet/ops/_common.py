# SPDX-License-Identifier: Apache-2.0
"""What every operator needs around its kernels: argument checks, autocast, registration with PyTorch."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _extension, backends

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: Op-name suffix of each backend; ``cpu`` and ``cuda`` are one op with a kernel per device.
SUFFIX = {"cpu": "", "cuda": "", "triton": "_triton", "reference": "_reference"}
_NAMESPACE = "pyindexnet"

# Constants of the process: torch.compile must be able to trace a read of them (torch 2.11 cannot trace the question).
_AUTOCAST_DEVICES = frozenset(d for d in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(d))
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
#: Triton's kernels run in its interpreter, on CPU tensors too. Triton reads the variable when it is imported.
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Compute capabilities that the extension has CUDA code for, e.g. ("80", "90", "100").
CUDA_ARCHITECTURES: tuple[str, ...] = () if _extension.MODULE is None else tuple(_extension.MODULE.cuda_architectures)


def autocast_inputs(*tensors: Any) -> tuple[Any, ...]:
    """Cast floating inputs to the active autocast dtype; float64 is left alone.

    Where one is no tensor, none is cast: the checks that follow name it.
    """
    if not all(isinstance(t, Tensor) for t in tensors):
        return tensors
    if not autocasts(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where ``x`` is."""
    device = x.device.type
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off where the device of ``x`` has it, which ``meta`` has not."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device in _AUTOCAST_DEVICES else nullcontext()


def check_tensor(op: str, name: str, value: Any, dims: Sequence[str]) -> None:
    """A floating tensor with ``len(dims)`` dimensions."""
    check_floating(op, name, value)
    if value.dim() != len(dims):
        raise ValueError(f"{op}: {name} must be ({', '.join(dims)}), got {value.dim()} dimensions")


def check_floating(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be float64, float32, float16 or bfloat16, got {value.dtype}")


def check_same(op: str, name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    if value.dtype != x.dtype:
        raise ValueError(f"{op}: {name} must have the dtype of {x_name}, {x.dtype}, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of {x_name}, {x.device}, got {value.device}")


def check_choice(op: str, name: str, value: Any, allowed: Sequence[Any]) -> None:
    if isinstance(value, (bool, float)) or value not in allowed:  # True == 1, 3.0 == 3
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_output_size(op: str, size: Any) -> Sequence[int]:
    """A pair of integers, which may be symbolic."""
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(n, (int, torch.SymInt)) for n in size):
        raise ValueError(f"{op}: output_size must be (H, W), got {size!r}")
    return size


# --- availability ---------------------------------------------------------------------------------------------------


def _device_reason(device: str, tensors: Sequence[Tensor]) -> str | None:
    for t in tensors:
        if t.device.type != device:
            return f"a tensor is on {t.device}, this backend runs on {device}"
    return None


def _cpu_why_not(*tensors: Tensor) -> str | None:
    return _extension.REASON if _extension.MODULE is None else _device_reason("cpu", tensors)


def _cuda_why_not(*tensors: Tensor) -> str | None:
    if _extension.MODULE is None:
        return _extension.REASON
    if not CUDA_ARCHITECTURES:
        return f"pyindexnet._C was built without nvcc; build it with: PYINDEXNET_CUDA=1 {_extension.BUILD_COMMAND}"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return _device_reason("cuda", tensors)


def _triton_why_not(*tensors: Tensor) -> str | None:
    if not TRITON_INSTALLED:
        return "triton is not installed; install it with: pip install triton"
    if TRITON_INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return _device_reason("cuda", tensors)


_AVAILABILITY: dict[str, Callable[..., str | None]] = {
    "cpu": _cpu_why_not,
    "cuda": _cuda_why_not,
    "triton": _triton_why_not,
    "reference": lambda *tensors: None,
}


def absent_kernel(op: str, backend: str) -> Callable[..., str | None] | None:
    """The reason where an extension that was built before the operator existed lacks its kernel."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(backend)
    if key is None or _extension.MODULE is None or (backend == "cuda" and not CUDA_ARCHITECTURES):
        return None
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::{op}", key):
        return None
    reason = f"pyindexnet._C has no {backend} kernel of {op}; build it again: {_extension.BUILD_COMMAND}"
    return lambda *tensors: reason


# --- registration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Definition:
    """One dispatcher op in all its variants: ``pyindexnet::NAME`` (cpu, cuda), ``NAME_triton``, ``NAME_reference``.

    Attributes:
        name: op name without suffix.
        schema: arguments and returns, e.g. ``(Tensor x, int ratio) -> Tensor``.
        check: raises on bad arguments; runs before the fake and before the Python kernels (C++ has checks of its own).
        fake: shape and layout of the outputs.
        reference: the op in plain PyTorch, outputs in the layout that ``fake`` promises.
        setup_context, backward: as in ``torch.library.register_autograd``; ``backward(call, ctx, *grads)`` gets ``call(op_name,
            *args)``, which runs another op of the family in the same variant.
    """

    name: str
    schema: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., Any]

    def checked(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """``kernel`` behind :attr:`check`."""

        @functools.wraps(kernel)
        def run(*args: Any) -> Any:
            self.check(*args)
            return kernel(*args)

        return run

    def define(self, suffix: str) -> None:
        """Register the variant with this suffix; its kernels come from the extension, from Triton or from a test."""
        name = f"{_NAMESPACE}::{self.name}{suffix}"
        torch.library.define(name, self.schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(name, self.checked(self.fake))

        def call(op: str, *args: Any) -> Any:
            return getattr(torch.ops.pyindexnet, op + suffix)(*args)

        torch.library.register_autograd(name, functools.partial(self.backward, call), setup_context=self.setup_context)


def _triton_launcher(name: str, module: str) -> Callable[..., Any]:
    # Triton is imported at the first call: importing pyindexnet must not need it.
    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"pyindexnet.kernels.{module}"), name)(*args)

    return launch


_families: dict[str, tuple[Definition, ...]] = {}
_overloads: dict[tuple[str, str], Callable[..., Any]] = {}


def register_family(op: str, *definitions: Definition) -> None:
    """Register an operator with its backward in every backend. ``op`` names its files and its public function."""
    _families[op] = definitions
    for definition in definitions:
        for suffix in ("", "_reference", "_triton"):
            definition.define(suffix)
        name = f"{_NAMESPACE}::{definition.name}"
        torch.library.impl(f"{name}_reference", "default", definition.checked(definition.reference))
        launcher = _triton_launcher(definition.name, op)
        torch.library.impl(f"{name}_triton", ("cpu", "cuda"), definition.checked(launcher))
    for backend, why_not in _AVAILABILITY.items():
        backends.register(op, backend, absent_kernel(op, backend) or why_not)
        _overloads[op, backend] = getattr(torch.ops.pyindexnet, op + SUFFIX[backend]).default


def family(op: str) -> tuple[Definition, ...]:
    """The definitions of an operator: forward first, then its backward."""
    return _families[op]


_inlined = False


@contextmanager
def inlined_reference() -> Iterator[None]:
    """Public functions called inside run the reference formulas themselves: a traced graph has no operator of this package."""
    global _inlined
    previous, _inlined = _inlined, True
    try:
        yield
    finally:
        _inlined = previous


def _refuse_tangents(op: str, tensors: Sequence[Tensor]) -> None:
    """``torch.library`` takes no forward-mode formula: PyTorch would drop the tangents without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(f"{op}: derivatives must be in reverse mode, got a tangent of forward mode (jvp, jacfwd)")


def dispatch(op: str, backend: str | None, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The dispatcher op of the chosen backend; inside :func:`inlined_reference`, the formula."""
    if _inlined:
        return _families[op][0].reference
    _refuse_tangents(op, tensors)
    return _overloads[op, backends.choose(op, *tensors, backend=backend)]
