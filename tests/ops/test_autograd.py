# SPDX-License-Identifier: Apache-2.0
"""First and second derivatives by finite differences, and the registration with PyTorch, for every backend."""

from __future__ import annotations

import pytest
import torch

from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import OpSpec, Sample, make_tensors

from .variants import ALL_SPECS, INDEXED_SPECS, elements, op, spec_id, variants

# It runs an operator about ten times; test_parity has all layouts and sizes in the interpreter too.
_OPCHECKED = ("contiguous",) if TRITON_INTERPRETED else ("contiguous", "channels_last", "position_major")


def _opchecked_sample(spec: OpSpec) -> Sample:
    usual = spec.samples[2]
    if not TRITON_INTERPRETED:
        return usual
    # direct calls need every option and tensor
    complete = [s for s in spec.samples if s.options.keys() == usual.options.keys() and len(s.shapes) == len(usual.shapes)]
    return min(filter(elements, complete), key=elements)


def _is_small(spec: OpSpec, sample: Sample) -> bool:
    # Finite differences visit every element, so only samples of a few hundred values take part; fewer where Triton's
    # interpreter marches through a map step by step.
    most = 200 if TRITON_INTERPRETED and spec not in INDEXED_SPECS else 900
    return sample.smooth and 0 < elements(sample) < most


SMALL = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.id}")
    for spec in ALL_SPECS
    for sample in spec.samples
    if _is_small(spec, sample)
]


def _inputs(spec: OpSpec, sample: Sample, device: str) -> tuple[torch.Tensor, ...]:
    return tuple(t.requires_grad_() for t in make_tensors(spec, sample, torch.float64, device))


@pytest.mark.interpreted(one_in=2)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("spec", "sample"), SMALL)
def test_gradcheck(spec: OpSpec, sample: Sample, variant: tuple[str, str]) -> None:
    backend, device = variant
    assert torch.autograd.gradcheck(
        lambda *t: op(spec, backend)(*spec.arguments(*t, **sample.options)), _inputs(spec, sample, device), fast_mode=True
    )


@pytest.mark.interpreted(one_in=4)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("spec", "sample"), SMALL)
def test_gradgradcheck(spec: OpSpec, sample: Sample, variant: tuple[str, str]) -> None:
    backend, device = variant
    assert torch.autograd.gradgradcheck(
        lambda *t: op(spec, backend)(*spec.arguments(*t, **sample.options)), _inputs(spec, sample, device), fast_mode=True
    )


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_second_derivative_of_one_input(spec: OpSpec, variant: tuple[str, str]) -> None:
    """A Hessian-vector product where only one input needs a gradient agrees with the one where all do."""
    backend, device = variant
    tensors = make_tensors(spec, spec.samples[0], torch.float64, device)

    def hessian_product(needed: set[int]) -> dict[int, torch.Tensor]:
        leaves = [t.clone().requires_grad_(i in needed) for i, t in enumerate(tensors)]
        y = op(spec, backend)(*spec.arguments(*leaves, **spec.default_options()))
        total = sum(p.pow(3).sum() for p in (y if isinstance(y, tuple) else (y,)))
        chosen = [leaves[i] for i in sorted(needed)]
        first = torch.autograd.grad(total, chosen, create_graph=True)
        own = {i: g.cos().sum() for i, g in zip(sorted(needed), first, strict=True)}
        return {i: torch.autograd.grad(own[i], leaves[i], retain_graph=True)[0] for i in needed}

    together = hessian_product(set(range(len(tensors))))
    for i in together:
        torch.testing.assert_close(hessian_product({i})[i], together[i])


@pytest.mark.parametrize("layout", _OPCHECKED)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_opcheck_forward(spec: OpSpec, variant: tuple[str, str], layout: str) -> None:
    backend, device = variant
    sample = _opchecked_sample(spec)
    tensors = [t.requires_grad_() for t in make_tensors(spec, sample, torch.float32, device, layout)]
    torch.library.opcheck(op(spec, backend).default, spec.arguments(*tensors, **sample.options))


@pytest.mark.interpreted(one_in=3)
@pytest.mark.parametrize("layout", _OPCHECKED[:2])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
@pytest.mark.parametrize("only", [None, 0, 1], ids=["all", "first", "last"])
def test_opcheck_backward(spec: OpSpec, variant: tuple[str, str], layout: str, only: int | None) -> None:
    backend, device = variant
    last = len(spec.tensors) - 1
    needed = tuple(only is None or i == only * last for i in range(last + 1))
    sample = _opchecked_sample(spec)
    tensors = make_tensors(spec, sample, torch.float32, device, layout)
    arguments = spec.arguments(*tensors, **sample.options)
    y = op(spec, backend)(*arguments)
    grads = [torch.randn_like(p).requires_grad_() for p in (y if isinstance(y, tuple) else (y,))]
    leaves = [t.requires_grad_() for t in tensors]
    options = spec.backward_options(sample.options)
    torch.library.opcheck(op(spec, backend, "_backward").default, (*grads, *leaves, *options, *needed))


@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_forward_mode_is_refused(spec: OpSpec) -> None:
    """PyTorch would give derivatives of 0."""
    sample = spec.samples[0]
    tensors = make_tensors(spec, sample, torch.float32)

    def run(x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return spec.function(x, *tensors[1:], **sample.options)

    with pytest.raises(NotImplementedError, match=f"{spec.name}: derivatives must be in reverse mode, got a tangent"):
        torch.func.jvp(run, tensors[:1], (torch.ones_like(tensors[0]),))
    with pytest.raises(NotImplementedError, match="derivatives must be in reverse mode"):
        torch.func.jacfwd(run)(tensors[0])
