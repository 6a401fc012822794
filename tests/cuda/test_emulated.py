# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on host threads: values, gradients, layouts, checks, the emulation's own rules."""

from __future__ import annotations

import pytest
import torch

from pyindexnet.testing import LAYOUTS, SPECS, OpSpec, Sample, make_tensors, measure
from pyindexnet.testing.parity import run
from tests.ops.variants import FLOATS, dtype_id, spec_id

from .emulation import sources
from .samples import KERNEL_SAMPLES

CUDA_SPECS = [SPECS[source.stem] for source in sources()]
INDEXED = [spec for spec in CUDA_SPECS if spec.name.startswith("indexed_")]
ALL = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.id}")
    for spec in CUDA_SPECS
    for sample in (*spec.samples, *KERNEL_SAMPLES.get(spec.name, ()))
]


def op(spec: OpSpec, suffix: str) -> object:
    return getattr(torch.ops.pyindexnet, spec.name + suffix)


def outputs_and_grads(spec: OpSpec, suffix: str, sample: Sample, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    outputs, grads = run(lambda *t: op(spec, suffix)(*spec.arguments(*t, **sample.options)), tensors, None)
    return outputs + grads


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("spec", "sample"), ALL)
def test_parity(emulated: str, spec: OpSpec, sample: Sample, layout: str, dtype: torch.dtype) -> None:
    rows = measure(spec, sample, emulated, dtype, "cpu", layout)
    assert len(rows) == len(spec.outputs) + len(sample.shapes)
    failed = [str(row) for row in rows if not row.ok]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("spec", "sample"), ALL)
def test_strides_are_what_the_fake_promises(emulated: str, spec: OpSpec, sample: Sample, layout: str) -> None:
    tensors = make_tensors(spec, sample, torch.float32, "cpu", layout)
    call = op(spec, emulated)
    y = call(*spec.arguments(*tensors, **sample.options))
    with torch._subclasses.FakeTensorMode() as mode:
        promised = call(*spec.arguments(*(mode.from_tensor(t) for t in tensors), **sample.options))
    for real, fake in zip(*((t if isinstance(t, tuple) else (t,)) for t in (y, promised)), strict=True):
        assert (real.shape, real.stride()) == (fake.shape, fake.stride())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("spec", "sample"), ALL)
def test_each_gradient_alone(emulated: str, spec: OpSpec, sample: Sample, layout: str) -> None:
    tensors = make_tensors(spec, sample, torch.float32, "cpu", layout)

    def call(*t: torch.Tensor) -> torch.Tensor:
        y = op(spec, emulated)(*spec.arguments(*t, **sample.options))
        return sum(p.sin().sum() for p in (y if isinstance(y, tuple) else (y,)))

    leaves = [t.clone().requires_grad_() for t in tensors]
    both = torch.autograd.grad(call(*leaves), leaves)
    for i, name in enumerate(spec.names(sample)):
        some = [t.clone().requires_grad_(j == i) for j, t in enumerate(tensors)]
        (alone,) = torch.autograd.grad(call(*some), [some[i]])
        assert torch.equal(alone, both[i]), name


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("spec", INDEXED, ids=spec_id)
def test_absent_positions_do_not_leak(emulated: str, spec: OpSpec, layout: str, dtype: torch.dtype) -> None:
    """NaN logits at positions outside an odd-sized image change nothing, and their gradient is 0."""
    samples = [s for s in spec.samples if "2x3x7x5" in s.id]
    assert samples
    for sample in samples:
        x, logits = make_tensors(spec, sample, dtype, "cpu", layout)
        absent = torch.zeros(4, 4, 3, dtype=torch.bool)
        absent[2:, 3, :] = True  # dy = 1 in the last row
        absent[1::2, :, 2] = True  # dx = 1 in the last column
        clean, spoiled = (
            outputs_and_grads(spec, emulated, sample, (x, logits.masked_fill(absent, value))) for value in (0, torch.nan)
        )
        for a, b in zip(clean, spoiled, strict=True):
            assert torch.equal(a, b), sample.id
        assert not spoiled[-1].masked_select(absent.expand_as(spoiled[-1])).any(), sample.id


@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_opcheck(emulated: str, spec: OpSpec) -> None:
    tensors = [t.requires_grad_() for t in make_tensors(spec, spec.samples[0], torch.float32)]
    torch.library.opcheck(op(spec, emulated).default, spec.arguments(*tensors, **spec.default_options()))


@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_bad_calls_touch_no_memory(emulated: str, spec: OpSpec) -> None:
    """C++ repeats the checks that memory safety needs."""
    sample = next(s for s in spec.samples if s.id.startswith("2x3x7x5"))
    tensors = make_tensors(spec, sample, torch.float32)
    for spoil in spec.bad_arguments:
        arguments = list(spec.arguments(*tensors, **sample.options))
        spoil(arguments)
        with pytest.raises((RuntimeError, ValueError), match=spec.name):
            op(spec, emulated)(*arguments)
