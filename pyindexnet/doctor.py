# SPDX-License-Identifier: Apache-2.0
"""What runs on this machine, what does not, and why: the command ``pyindexnet doctor``."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _extension, backends
from ._version import __version__
from .ops._common import CUDA_ARCHITECTURES


@dataclass(frozen=True)
class Status:
    """One operator on one device.

    Attributes:
        op: operator.
        device: ``cpu`` or ``cuda``.
        chosen: the backend of the automatic choice, or of ``PYINDEXNET_BACKEND``; None: that one cannot run there.
        reasons: why each other backend cannot run there; a backend that could, but is not chosen, is absent.
    """

    op: str
    device: str
    chosen: str | None
    reasons: dict[str, str]


def facts() -> list[tuple[str, str]]:
    """Versions, devices and build facts as (name, value)."""
    out = [
        ("pyindexnet", __version__),
        ("Python", f"{sys.version.split()[0]} on {platform.system()} {platform.machine()}"),
        ("PyTorch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]
    try:
        out.append(("Triton", version("triton")))
    except PackageNotFoundError:
        out.append(("Triton", "not installed"))
    module = _extension.MODULE
    if module is None:
        out.append(("extension", _extension.REASON))
    else:
        out += [
            (
                "extension",
                f"{module.compiler}, built with PyTorch {module.built_with_torch} for {module.torch_target} and later",
            ),
            ("CPU kernels", f"{module.cpu_isa} (PYINDEXNET_CPU_ISA=generic|avx2|avx512 forces one)"),
            (
                "CUDA kernels",
                f"nvcc {module.nvcc}, compute capabilities {', '.join(CUDA_ARCHITECTURES)}"
                if CUDA_ARCHITECTURES
                else "not built (no nvcc, or PYINDEXNET_CUDA=0)",
            ),
        ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            out.append((f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, compute capability {major}.{minor}"))
    else:
        out.append(("CUDA device", "none that PyTorch sees"))
    out.append(("PYINDEXNET_BACKEND", os.environ.get("PYINDEXNET_BACKEND") or "not set"))
    return out


def statuses() -> list[Status]:
    """Every operator on every device of this machine.

    Raises:
        ValueError: ``PYINDEXNET_BACKEND`` names no backend.
    """
    out = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        probe = torch.empty(0, device=device)
        for op in backends.operators():
            reasons = {b: backends.why_not(op, b, probe) for b in backends.BACKENDS}
            forced = backends.forced()
            chosen = backends.choose(op, probe) if forced is None or reasons[forced] is None else None
            out.append(Status(op, device, chosen, {b: r for b, r in reasons.items() if r is not None}))
    return out
