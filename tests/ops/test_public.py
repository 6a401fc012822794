# SPDX-License-Identifier: Apache-2.0
"""The public functions: torch.compile, torch.export, autocast, errors, choice of backend."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import pyindexnet
from pyindexnet import backends
from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import OpSpec, make_tensors

from .variants import ALL_SPECS, elements, spec_id, variants

ERRORS = [
    pytest.param(spec, spoil, pattern, id=f"{spec.name}-{number}")
    for spec in ALL_SPECS
    for number, (spoil, pattern) in enumerate(spec.errors)
]


# What Inductor makes of the code around an operator does not depend on what runs the operator.
COMPILER = "aot_eager" if TRITON_INTERPRETED else "inductor"


def _flat(y: Any) -> tuple[torch.Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.interpreted(one_in=2)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_compile_fullgraph(spec: OpSpec, variant: tuple[str, str], dynamic: bool) -> None:
    backend, device = variant

    def network(*t: torch.Tensor, **options: Any) -> torch.Tensor:
        return sum(p.sin().sum() for p in _flat(spec.function(*(a * 2 for a in t), backend=backend, **options)))

    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend=COMPILER)
    # Odd sizes, both kinds of maps, another ratio; each is a compilation of its own, so there are few.
    odd = [s for s in spec.samples if s.id.startswith("2x3x7x5")]
    samples = [odd[0], odd[-1], next(s for s in spec.samples if s.id.startswith("2x5x10x9"))]
    for sample in [min(odd, key=elements)] if TRITON_INTERPRETED else samples:
        results = []
        for f in (network, compiled):
            leaves = [t.requires_grad_() for t in make_tensors(spec, sample, torch.float32, device)]
            loss = f(*leaves, **sample.options)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_compile_follows_use_backend() -> None:
    """A compiled function that was traced under one backend is traced again under another."""
    x, logits = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 2, 2)
    compiled = torch.compile(lambda x, a: pyindexnet.indexed_pool(x, a), fullgraph=True)
    automatic = compiled(x, logits)
    with pyindexnet.use_backend("reference"):
        torch.testing.assert_close(compiled(x, logits), automatic)
    with pyindexnet.use_backend("cuda"), pytest.raises(Exception, match="backend cuda cannot run"):
        compiled(x, logits)


@pytest.mark.interpreted(one_in=2)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_export(spec: OpSpec, variant: tuple[str, str], dynamic: bool) -> None:
    backend, device = variant
    sample = spec.samples[0]

    class Network(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            options = {k: v for k, v in sample.options.items() if k != "output_size"}
            return spec.function(*tensors, backend=backend, **options)

    tensors = make_tensors(spec, sample, torch.float32, device)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"tensors": tuple({0: batch} for _ in tensors)} if dynamic else None
    program = torch.export.export(Network(), tensors, dynamic_shapes=shapes)
    assert f"pyindexnet.{spec.name}" in str(program.graph)
    inputs = tuple(torch.cat([t, t, t]) for t in tensors) if dynamic else tensors
    for a, b in zip(_flat(program.module()(*inputs)), _flat(Network()(*inputs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.interpreted(one_in=2)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_autocast(spec: OpSpec, variant: tuple[str, str], dtype: torch.dtype, compiled: bool) -> None:
    """Mixed inputs are cast to the autocast dtype, with gradients in the dtype of the inputs; float64 is left alone."""
    backend, device = variant
    x, *others = (t.requires_grad_() for t in make_tensors(spec, spec.samples[0], torch.float32, device))

    def call(*tensors: torch.Tensor) -> Any:
        return spec.function(*tensors, backend=backend, **spec.default_options())

    torch._dynamo.reset()
    f = torch.compile(call, fullgraph=True, backend=COMPILER) if compiled else call
    with torch.autocast(device, dtype):
        ys = _flat(f(x, *(t.to(dtype) for t in others)))
        double = _flat(call(*(t.double() for t in (x, *others))))
    assert {y.dtype for y in ys} == {dtype}
    assert {y.dtype for y in double} == {torch.float64}
    direct = _flat(call(*(t.to(dtype) for t in (x, *others))))
    for a, b in zip(ys, direct, strict=True):
        assert torch.equal(a, b)
    grads = torch.autograd.grad(sum(y.float().sum() for y in ys), (x, *others))
    assert {g.dtype for g in grads} == {torch.float32}


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("spec", "spoil", "pattern"), ERRORS)
def test_errors(spec: OpSpec, spoil: Any, pattern: str, variant: tuple[str, str]) -> None:
    backend, device = variant
    if device != "cpu":
        pattern = pattern.replace("cpu, got meta", "cuda:0, got meta")
    sample = next(s for s in spec.samples if s.id.startswith("2x3x7x5"))
    tensors = dict(zip(spec.tensors, make_tensors(spec, sample, torch.float32, device), strict=True))
    call: dict[str, Any] = {**tensors, **sample.options, "backend": backend}
    spoil(call)
    positional = [call.pop(name) for name in spec.tensors]
    with pytest.raises((ValueError, TypeError), match=pattern):
        spec.function(*positional, **call)


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_direct_dispatcher_calls_are_checked(spec: OpSpec, variant: tuple[str, str]) -> None:
    """``torch.ops`` skips the public checks; wrong shapes must raise there too, never touch memory."""
    backend, device = variant
    sample = next(s for s in spec.samples if s.id.startswith("2x3x7x5"))
    tensors = make_tensors(spec, sample, torch.float32, device)
    op = getattr(torch.ops.pyindexnet, spec.name + {"reference": "_reference", "triton": "_triton"}.get(backend, ""))
    for spoil in spec.bad_arguments:
        arguments = list(spec.arguments(*tensors, **sample.options))
        spoil(arguments)
        with pytest.raises((RuntimeError, ValueError)):
            op(*arguments)


# --- choice of backend ------------------------------------------------------------------------------------------------


def test_choice_argument_then_context_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 4, 4)
    monkeypatch.setenv("PYINDEXNET_BACKEND", "reference")
    assert backends.choose("indexed_pool", x) == "reference"
    with pyindexnet.use_backend("cuda"):
        assert backends.forced() == "cuda"
        assert backends.choose("indexed_pool", x, backend="reference") == "reference"
        with pytest.raises(backends.BackendError, match="indexed_pool: backend cuda cannot run: "):
            backends.choose("indexed_pool", x)
        with pyindexnet.use_backend(None):
            assert backends.choose("indexed_pool", x) == "reference"
    monkeypatch.setenv("PYINDEXNET_BACKEND", "cdua")
    with pytest.raises(ValueError, match="PYINDEXNET_BACKEND must be one of reference, cpu, cuda, triton, got 'cdua'"):
        backends.choose("indexed_pool", x)


def test_automatic_choice_logs_reasons(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "ORDER", ("cuda", "reference"))
    with caplog.at_level(logging.DEBUG, logger="pyindexnet.backends"):
        assert backends.choose("indexed_pool", torch.randn(1, 2, 4, 4)) == "reference"
    assert "indexed_pool: not cuda: " in caplog.text


def test_use_backend_rejects_unknown_names() -> None:
    with pytest.raises(ValueError, match="use_backend: name must be one of .* got 'gpu'"), pyindexnet.use_backend("gpu"):
        pass
    assert backends.forced() is None


def test_why_not_rejects_unknown_operators() -> None:
    with pytest.raises(ValueError, match="why_not: op must be one of .*indexed_pool.*, got 'pool'"):
        backends.why_not("pool", "reference")


def test_every_operator_has_every_backend() -> None:
    for spec in ALL_SPECS:
        assert spec.name in backends.operators()
        for backend in backends.BACKENDS:
            assert (spec.name, backend) in backends._predicates


def test_without_extension_the_package_works() -> None:
    code = (
        "import torch, pyindexnet\n"
        "from pyindexnet import backends\n"
        "assert 'PYINDEXNET_NO_EXTENSION' in backends.why_not('indexed_pool', 'cpu')\n"
        "y = pyindexnet.indexed_pool(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 2, 2))\n"
        "assert torch.equal(y, torch.ones(1, 1, 2, 2))\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYINDEXNET_NO_EXTENSION": "1"}, check=True)
