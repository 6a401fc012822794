# SPDX-License-Identifier: Apache-2.0
"""non_background_pool: the definition by loops, published arrays, what running sums get wrong, windows without mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyindexnet import non_background_pool
from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import SPECS, Sample, measure
from tests.golden import load_case

from .variants import FLOATS, SUFFIX, dtype_id, variants

SPEC = SPECS["non_background_pool"]
TMP = (31, 17, 11, 5)


def by_loops(x: torch.Tensor, mask: torch.Tensor, k: int, eps: float, include_pad: bool) -> torch.Tensor:
    """[TMFNet] Eq. 3 pixel by pixel."""
    y, r = torch.zeros_like(x), k // 2
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            rows, columns = slice(max(i - r, 0), i + r + 1), slice(max(j - r, 0), j + r + 1)
            m = mask[:, :, rows, columns]
            n = k * k if include_pad else m[0, 0].numel()
            y[:, :, i, j] = ((m * x[:, :, rows, columns]).sum((2, 3)) / n) / (m.sum((2, 3)) / n + eps)
    return y


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("k", [1, 3, 5, 31])
@pytest.mark.parametrize("variant", variants())
def test_definition(variant: tuple[str, str], k: int, include_pad: bool) -> None:
    backend, device = variant
    torch.manual_seed(0)
    x, mask = torch.randn(2, 2, 6, 9, dtype=torch.float64), torch.rand(2, 1, 6, 9, dtype=torch.float64)
    y = non_background_pool(
        x.to(device), mask.to(device), kernel_size=k, eps=0.01, count_include_pad=include_pad, backend=backend
    )
    torch.testing.assert_close(y.cpu(), by_loops(x, mask, k, 0.01, include_pad))


@pytest.mark.parametrize("variant", variants())
def test_chunks_are_the_windows_one_by_one(variant: tuple[str, str]) -> None:
    backend, device = variant
    torch.manual_seed(0)
    x, mask = torch.randn(1, 8, 9, 7, device=device), torch.rand(1, 1, 9, 7, device=device)
    y = non_background_pool(x, mask, kernel_size=TMP, backend=backend)
    parts = [
        non_background_pool(part, mask, kernel_size=k, backend=backend) for part, k in zip(x.chunk(4, 1), TMP, strict=True)
    ]
    torch.testing.assert_close(y, torch.cat(parts, 1))


@pytest.mark.skipif(TRITON_INTERPRETED, reason="256 channels are too many for Triton's interpreter")
@pytest.mark.parametrize("k", [31, 5])
@pytest.mark.parametrize("variant", variants())
def test_published_branch(variant: tuple[str, str], k: int) -> None:
    """One branch of TMP: convolution, batch norm, leaky ReLU, then pooling; count_include_pad is False there."""
    backend, device = variant
    case = load_case("tmf_module", f"tripool_k{k}")
    weight = {name: t.to(device) for name, t in case.tensors("weight").items()}
    inputs = case.tensor("input_feature_and_mask").to(device).requires_grad_()
    mask = inputs[:, -1:]
    h = F.conv2d(inputs[:, :-1], weight["conv.0.weight"], weight["conv.0.bias"])
    norm = [weight[f"conv.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    h = F.leaky_relu(F.batch_norm(h, *norm), 0.01)
    y = non_background_pool(h, mask, kernel_size=k, backend=backend)
    (grad,) = torch.autograd.grad(y, inputs, case.tensor("cotangent_output").to(device))
    # The case stores no noise floor: rounding of the terms that a pixel sums, as in the tolerance rule.
    height, width = h.shape[2:]
    window = min(k, height) * min(k, width)
    for value, wanted, terms in (
        (y, case.tensor("output"), window + h.shape[1]),
        (grad[:, :-1], case.tensor("grad_feature_and_mask")[:, :-1], window + h.shape[1]),
        (grad[:, -1:], case.tensor("grad_feature_and_mask")[:, -1:], window * h.shape[1]),
    ):
        bound = terms * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (value.detach().cpu() - wanted).abs().max() <= bound


LONG = [
    pytest.param(shape, k, id=f"{shape[2]}x{shape[3]}-k{k}")
    for shape in ((1, 1, 4096, 64), (1, 1, 64, 4096), (1, 17, 3, 4099))
    for k in (5, 31, 1023)
]


@pytest.mark.skipif(TRITON_INTERPRETED, reason="too large for Triton's interpreter")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "k"), LONG)
@pytest.mark.parametrize("variant", variants())
def test_no_drift_on_long_maps(variant: tuple[str, str], shape: tuple[int, ...], k: int, layout: str) -> None:
    """The bound knows the window, not the map: a sum that runs over the whole map would leave it."""
    backend, device = variant
    options = {"kernel_size": k, "eps": 1e-6, "count_include_pad": False}
    sample = Sample(f"long-{shape}-{k}", (shape, (1, 1, *shape[2:])), options)
    for row in measure(SPEC, sample, SUFFIX[backend], torch.float32, device, layout):
        assert row.ok, str(row)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", variants())
def test_windows_without_mask(variant: tuple[str, str], channels_last: bool, dtype: torch.dtype) -> None:
    """Exactly 0 there, however large the values beside; gradients are finite."""
    backend, device = variant
    torch.manual_seed(0)
    x = 1e4 * torch.randn(2, 4, 12, 20, device=device)
    mask = torch.rand(2, 1, 12, 20, device=device) + 0.1
    mask[..., 6:] = 0
    mask[1] = 0
    x, mask = x.to(dtype), mask.to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = x.requires_grad_(), mask.requires_grad_()
    y = non_background_pool(*leaves, kernel_size=(3, 7), backend=backend)
    assert not y[0, :2, :, 7:].any()
    assert not y[0, 2:, :, 9:].any()
    assert y[0, :2, :, :7].all()
    assert not y[1].any()
    for grad in torch.autograd.grad(y.float().sum(), leaves):
        assert grad.isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_window_depends_on_nothing_outside_it(variant: tuple[str, str], channels_last: bool) -> None:
    """A NaN and an infinity reach the windows that hold them and no others, in either direction."""
    backend, device = variant
    torch.manual_seed(0)
    x, mask = torch.randn(1, 3, 17, 21), torch.rand(1, 1, 17, 21) + 0.1
    spoiled = x.clone()
    spoiled[0, :, 8, 3], spoiled[0, :, 8, 17] = torch.nan, torch.inf
    layout = torch.channels_last if channels_last else torch.contiguous_format
    clean, other = (
        non_background_pool(t.to(device, memory_format=layout), mask.to(device), kernel_size=5, backend=backend).cpu()
        for t in (x, spoiled)
    )
    reached = torch.zeros(17, 21, dtype=torch.bool)
    reached[6:11, 1:6] = True
    reached[6:11, 15:20] = True
    assert torch.equal(other[..., ~reached], clean[..., ~reached])
    assert not other[..., reached].isfinite().any()
