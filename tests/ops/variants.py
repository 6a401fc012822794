# SPDX-License-Identifier: Apache-2.0
"""The op variants that this process can run, as pytest parameters; the others are skipped with their reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyindexnet import backends
from pyindexnet.ops._common import SUFFIX, TRITON_INTERPRETED
from pyindexnet.testing import LAYOUTS, SPECS, OpSpec, Sample

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Triton's interpreter is slow; tests/triton covers what is specific to it in all dtypes.
PARITY = (
    (("contiguous", torch.float32), ("channels_last", torch.float16), ("strided", torch.float64))
    if TRITON_INTERPRETED
    else tuple((layout, dtype) for layout in LAYOUTS for dtype in FLOATS)
)


def variants() -> list[Any]:
    """(backend, device) of every backend."""
    triton_device = "cpu" if TRITON_INTERPRETED else "cuda"
    pairs = (("reference", "cpu"), ("reference", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("triton", triton_device))
    out = []
    for backend, device in pairs:
        reason = backends.why_not(next(iter(SPECS)), backend)
        marks = []
        if device == "cuda":
            marks.append(pytest.mark.gpu)
        elif reason is not None:
            marks.append(pytest.mark.skip(reason=f"{backend}: {reason}"))
        out.append(pytest.param((backend, device), id=f"{backend}-{device}", marks=marks))
    return out


def op(spec: OpSpec, backend: str, part: str = "") -> Any:
    """The dispatcher op (``part`` "" or "_backward") of a backend."""
    return getattr(torch.ops.pyindexnet, f"{spec.name}{part}{SUFFIX[backend]}")


def elements(sample: Sample) -> int:
    """Of all tensors."""
    return sum(torch.Size(s).numel() for s in sample.shapes)


def spec_id(spec: OpSpec) -> str:
    return spec.name


def layout_id(value: str | torch.dtype) -> str:
    return value if isinstance(value, str) else dtype_id(value)


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


ALL_SPECS = list(SPECS.values())
#: Those whose second argument holds logits of cells.
INDEXED_SPECS = [spec for spec in ALL_SPECS if spec.name.startswith("indexed_")]


def _samples(spec: OpSpec) -> tuple[Sample, ...]:
    # In the interpreter, whose steps cost milliseconds, the first of the operators that share their kernels with dynamic_*.
    return spec.samples[:6] if TRITON_INTERPRETED and spec.name.startswith("affinity_") else spec.samples


ALL_SAMPLES = [pytest.param(spec, sample, id=f"{spec.name}-{sample.id}") for spec in ALL_SPECS for sample in _samples(spec)]
