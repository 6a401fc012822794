# SPDX-License-Identifier: Apache-2.0
"""Parity and gradients on the user's own machine: the command ``pyindexnet check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from . import backends
from .ops._common import FLOATS, SUFFIX, TRITON_INTERPRETED
from .testing import LAYOUTS, SPECS, OpSpec, Sample, make_tensors, measure

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


@dataclass(frozen=True)
class CheckRow:
    """One line of the table.

    Attributes:
        op, backend, device, dtype: what was checked.
        what: ``y``, ``grad x``, ..., ``gradcheck`` or ``gradgradcheck``.
        cases: number of samples and layouts.
        error, bound: of the case that came closest to its bound; None for gradcheck and gradgradcheck.
        failure: what went wrong, empty where nothing did.
    """

    op: str
    backend: str
    device: str
    dtype: str
    what: str
    cases: int
    error: float | None
    bound: float | None
    failure: str

    @property
    def ok(self) -> bool:
        return not self.failure


def _pick(name: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for value in wanted or ():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return list(wanted) if wanted else list(known)


def _devices(backend: str, wanted: Sequence[str] | None) -> list[str]:
    """Devices that ``backend`` runs on here. A device that was asked for by name stays, so that its reason is seen."""
    native = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cpu",) if TRITON_INTERPRETED else ("cuda",)}
    return [
        d for d in native.get(backend, ("cpu", "cuda")) if (d in wanted if wanted else d == "cpu" or torch.cuda.is_available())
    ]


def run_checks(
    ops: Sequence[str] | None = None,
    backend_names: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
) -> Iterator[CheckRow]:
    """Check operators against the float64 reference, with gradcheck and gradgradcheck, row by row.

    Args:
        ops, backend_names, devices, dtypes: names to check; None: all. Backends that cannot run here are left out unless named.
    Yields:
        One row for each output and gradient of an operator, backend, device and dtype, and two for the finite differences.
    Raises:
        ValueError: an unknown name, or nothing left to check. BackendError: a backend asked for by name cannot run here.
    """
    backends.forced()  # a wrong PYINDEXNET_BACKEND is refused here too, though the checks name their backends
    chosen_ops = _pick("--op", ops, list(SPECS))
    chosen_dtypes = _pick("--dtype", dtypes, list(DTYPES))
    chosen_devices = _pick("--device", devices, ("cpu", "cuda")) if devices else None
    plan = []
    for op in chosen_ops:
        for backend in _pick("--backend", backend_names, backends.BACKENDS):
            reason = backends.why_not(op, backend)
            if reason is None:
                plan += [(SPECS[op], backend, device) for device in _devices(backend, chosen_devices)]
            elif backend_names:
                raise backends.BackendError(f"{op}: backend {backend} cannot run here: {reason}")
    if not plan:
        raise ValueError("nothing to check: the backends asked for do not run on the devices asked for")
    if "cuda" in (chosen_devices or ()) and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device")
    for spec, backend, device in plan:
        for dtype in chosen_dtypes:
            yield from _parity(spec, backend, device, dtype)
        if "float64" in chosen_dtypes:
            yield from _finite_differences(spec, backend, device)


def _parity(spec: OpSpec, backend: str, device: str, dtype: str) -> Iterator[CheckRow]:
    closest: dict[str, tuple[float, float, float]] = {}
    failures: dict[str, str] = {}
    cases = 0
    for sample in spec.samples:
        for layout in LAYOUTS:
            cases += 1
            for row in measure(spec, sample, SUFFIX[backend], DTYPES[dtype], device, layout):
                share = row.error / row.bound if row.bound else float(row.error > 0)
                closest[row.tensor] = max(closest.get(row.tensor, (-1.0, 0.0, 0.0)), (share, row.error, row.bound))
                if not row.ok:
                    failures.setdefault(row.tensor, f"{sample.id}, {layout}: {row}")
    for tensor, (_, error, bound) in closest.items():
        yield CheckRow(spec.name, backend, device, dtype, tensor, cases, error, bound, failures.get(tensor, ""))


def _finite_differences(spec: OpSpec, backend: str, device: str) -> Iterator[CheckRow]:
    op = getattr(torch.ops.pyindexnet, spec.name + SUFFIX[backend])
    samples = [s for s in spec.samples if 0 < sum(torch.Size(shape).numel() for shape in s.shapes) < 600 and s.smooth]

    def check(function: object, sample: Sample) -> str:
        inputs = tuple(t.requires_grad_() for t in make_tensors(spec, sample, torch.float64, device))
        try:
            function(lambda *t: op(*spec.arguments(*t, **sample.options)), inputs, fast_mode=True)  # type: ignore[operator]
        except RuntimeError as error:  # GradcheckError
            return f"{sample.id}: {' '.join(str(error).split())}"
        return ""

    for name, function in (("gradcheck", torch.autograd.gradcheck), ("gradgradcheck", torch.autograd.gradgradcheck)):
        failed = [text for text in (check(function, sample) for sample in samples) if text]
        yield CheckRow(spec.name, backend, device, "float64", name, len(samples), None, None, failed[0] if failed else "")
