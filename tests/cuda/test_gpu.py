# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: streams, graph capture, no synchronisation, sizes beyond 32-bit indices, other devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyindexnet.testing import SPECS, OpSpec, make_tensors
from tests.ops.variants import spec_id

from .emulation import sources

pytestmark = pytest.mark.gpu
CUDA_SPECS = [SPECS[source.stem] for source in sources()]


def flat(y: Any) -> tuple[torch.Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


def forward_backward(spec: OpSpec, tensors: tuple[torch.Tensor, ...], options: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    leaves = tuple(t.detach().requires_grad_() for t in tensors)
    y = flat(spec.function(*leaves, backend="cuda", **options))
    return y + torch.autograd.grad(y, leaves, tuple(torch.ones_like(p) for p in y))


@pytest.fixture(params=["depthwise", "holistic"])
def case(request: pytest.FixtureRequest, spec: OpSpec) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Tensors on the GPU and options."""
    filled = [s for s in spec.samples if s.shapes[0][0] > 0]
    sample = next((s for s in filled if request.param in s.id), filled[0])  # without index maps: the first
    return make_tensors(spec, sample, torch.float32, "cuda"), dict(sample.options)


@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_graph_capture(spec: OpSpec, case: Any) -> None:
    """Captured once, replayed on other values."""
    tensors, options = case
    expected = forward_backward(spec, tuple(t * 2 for t in tensors), options)
    static = tuple(t.clone() for t in tensors)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        forward_backward(spec, static, options)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_backward(spec, static, options)
    for s, t in zip(static, tensors, strict=True):
        s.copy_(t * 2)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_runs_on_the_current_stream(spec: OpSpec, case: Any) -> None:
    """Work queued behind a long wait on a side stream must wait with it."""
    tensors, options = case
    expected = forward_backward(spec, tensors, options)
    late = tuple(torch.full_like(t, torch.nan) for t in tensors)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for s, t in zip(late, tensors, strict=True):
            s.copy_(t)
        results = forward_backward(spec, late, options)
    assert not side.query(), "the operator waited for the device"
    side.synchronize()
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_no_synchronisation(spec: OpSpec, case: Any) -> None:
    tensors, options = case
    forward_backward(spec, tensors, options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_backward(spec, tensors, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("spec", CUDA_SPECS, ids=spec_id)
def test_runs_on_the_device_of_its_tensors(spec: OpSpec, case: Any) -> None:
    tensors, options = case
    there = tuple(t.to("cuda:1") for t in tensors)
    for a, b in zip(forward_backward(spec, there, options), forward_backward(spec, tensors, options), strict=True):
        assert a.device == torch.device("cuda:1")
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("holistic", [False, True], ids=["depthwise", "holistic"])
def test_more_than_2_31_elements(channels_last: bool, holistic: bool) -> None:
    """The last channels and rows of a tensor of more than 2^31 elements come out as they do alone."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    c, size, half = 33 if not channels_last else 36, 8192 + 8, (8192 + 8) // 2
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.empty(1, c, size, size, dtype=torch.bfloat16, device="cuda", memory_format=layout)
    assert x.numel() > 1 << 31
    torch.nn.init.normal_(x)
    ci = 1 if holistic else c
    logits = torch.randn(1, ci, 4, half, half, dtype=torch.bfloat16, device="cuda")
    if channels_last:
        logits = logits.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    op = torch.ops.pyindexnet
    y = op.indexed_pool(x, logits, 2, "sigmoid_softmax")
    grad_x, grad_logits = op.indexed_pool_backward(y, x, logits, 2, "sigmoid_softmax", True, True)
    part = slice(-16, None)
    small_x, small_logits, small_y = x[:, :, -32:], logits[..., part, :], y[:, :, part]
    assert torch.equal(small_y, op.indexed_pool(small_x, small_logits, 2, "sigmoid_softmax"))
    wanted = op.indexed_pool_backward(small_y, small_x, small_logits, 2, "sigmoid_softmax", True, True)
    assert torch.equal(grad_x[:, :, -32:], wanted[0])
    torch.testing.assert_close(grad_logits[..., part, :], wanted[1])
