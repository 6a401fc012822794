# SPDX-License-Identifier: Apache-2.0
"""Every backend against the float64 reference: outputs and gradients, all dtypes and layouts, under the tolerance rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pyindexnet import backends
from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import OpSpec, Sample, make_tensors, measure
from pyindexnet.testing.parity import run

from .variants import ALL_SAMPLES, ALL_SPECS, FLOATS, INDEXED_SPECS, PARITY, SUFFIX, dtype_id, layout_id, op, spec_id, variants


@pytest.mark.interpreted(one_in=3)
@pytest.mark.parametrize(("layout", "dtype"), PARITY, ids=layout_id)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("spec", "sample"), ALL_SAMPLES)
def test_parity(spec: OpSpec, sample: Sample, variant: tuple[str, str], layout: str, dtype: torch.dtype) -> None:
    backend, device = variant
    rows = measure(spec, sample, SUFFIX[backend], dtype, device, layout)
    assert len(rows) == len(spec.outputs) + len(sample.shapes)
    failed = [f"{backend} on {device}: {row}" for row in rows if not row.ok]
    assert not failed, "\n".join(failed)


@pytest.mark.interpreted(one_in=8)
@pytest.mark.parametrize("layout", list(dict.fromkeys(layout for layout, _ in PARITY)))
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("spec", "sample"), ALL_SAMPLES)
def test_strides_are_what_the_fake_promises(spec: OpSpec, sample: Sample, variant: tuple[str, str], layout: str) -> None:
    backend, device = variant
    tensors = make_tensors(spec, sample, torch.float32, device, layout)
    outputs, grads = run(lambda *t: op(spec, backend)(*spec.arguments(*t, **sample.options)), tensors, None)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(t) for t in tensors)
        promised = op(spec, backend)(*spec.arguments(*fakes, **sample.options))
    promised = promised if isinstance(promised, tuple) else (promised,)
    for y, fake in zip(outputs, promised, strict=True):
        assert y.stride() == fake.stride()
        assert y.shape == fake.shape
    for g, t in zip(grads, tensors, strict=True):
        assert g.shape == t.shape


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_layout_follows_the_input(spec: OpSpec, variant: tuple[str, str], channels_last: bool) -> None:
    backend, device = variant
    layout = "channels_last" if channels_last else "contiguous"
    tensors = make_tensors(spec, spec.samples[0], torch.float32, device, layout)
    outputs, grads = run(lambda *t: op(spec, backend)(*spec.arguments(*t, **spec.default_options())), tensors, None)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for y in outputs:
        assert y.is_contiguous(memory_format=wanted if y.dim() == 4 else torch.contiguous_format)
    assert grads[0].is_contiguous(memory_format=wanted)
    for grad, t in zip(grads[1:], tensors[1:], strict=True):
        assert grad.stride() == t.stride()


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_each_gradient_alone(spec: OpSpec, variant: tuple[str, str]) -> None:
    backend, device = variant
    tensors = make_tensors(spec, spec.samples[0], torch.float32, device)

    def call(*t: torch.Tensor) -> torch.Tensor:
        y = op(spec, backend)(*spec.arguments(*t, **spec.default_options()))
        return sum(p.sin().sum() for p in (y if isinstance(y, tuple) else (y,)))

    leaves = [t.clone().requires_grad_() for t in tensors]
    both = torch.autograd.grad(call(*leaves), leaves)
    for i, name in enumerate(spec.tensors):
        some = [t.clone().requires_grad_(j == i) for j, t in enumerate(tensors)]
        (alone,) = torch.autograd.grad(call(*some), [some[i]])
        assert torch.equal(alone, both[i]), name


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_runs_are_bitwise_equal(spec: OpSpec, variant: tuple[str, str]) -> None:
    backend, device = variant
    # The gradient of a shared map is a long sum.
    sample = next((s for s in spec.samples if "holistic" in s.id), spec.samples[0])
    tensors = make_tensors(spec, sample, torch.float32, device)
    first = run(lambda *t: op(spec, backend)(*spec.arguments(*t, **sample.options)), tensors, None)
    second = run(lambda *t: op(spec, backend)(*spec.arguments(*t, **sample.options)), tensors, None)
    for a, b in zip(sum(first, ()), sum(second, ()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", INDEXED_SPECS, ids=spec_id)
def test_absent_positions_do_not_leak(spec: OpSpec, variant: tuple[str, str], dtype: torch.dtype) -> None:
    """NaN logits at positions outside an odd-sized image change nothing, and their gradient is 0."""
    backend, device = variant
    samples = [s for s in spec.samples if "2x3x7x5" in s.id]
    assert samples
    for sample in samples:
        x, logits = make_tensors(spec, sample, dtype, device)
        logits = logits.clone()
        absent = torch.zeros(4, 4, 3, dtype=torch.bool, device=device)
        absent[2:, 3, :] = True  # dy = 1 in the last row
        absent[1::2, :, 2] = True  # dx = 1 in the last column
        clean = logits.masked_fill(absent, 0)
        spoiled = logits.masked_fill(absent, torch.nan)
        options = sample.options

        def call(*t: torch.Tensor, options: Mapping[str, Any] = options) -> Any:
            return op(spec, backend)(*spec.arguments(*t, **options))

        args = [run(call, (x, a), None) for a in (clean, spoiled)]
        for a, b in zip(sum(args[0], ()), sum(args[1], ()), strict=True):
            assert torch.equal(a, b), sample.id
        grad = args[1][1][1]
        assert not grad.masked_select(absent.expand_as(grad)).any(), sample.id


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
@pytest.mark.parametrize("width", [512, 518])
@pytest.mark.parametrize("spec", INDEXED_SPECS, ids=spec_id)
@pytest.mark.skipif(TRITON_INTERPRETED, reason="too large for Triton's interpreter")
def test_large_outputs(spec: OpSpec, width: int, holistic: bool, layout: str) -> None:
    """Beyond 16 MiB the CPU kernels write past the caches where vectors are aligned, which 518 columns are not."""
    low = (1, 16, 260, width // 2)
    x = low if spec.name == "indexed_upsample" else (1, 16, 520, width)
    options = dict(spec.default_options())
    if "output_size" in options:
        options["output_size"] = (520, width)
    sample = Sample(f"large-{width}-{holistic}", (x, (1, 1 if holistic else 16, 4, *low[2:])), options)
    for row in measure(spec, sample, SUFFIX[backends.choose(spec.name, torch.empty(0))], torch.float32, "cpu", layout):
        assert row.ok, str(row)
