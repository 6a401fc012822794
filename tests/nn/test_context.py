# SPDX-License-Identifier: Apache-2.0
"""TMP against the published one; pyramid pooling against loops; their variants."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.models.tmfnet import context_key_map
from pyindexnet.nn import TMP, PyramidPooling
from tests.golden import load_case
from tests.nn.golden_module import check, load_published, parameter_gradients


@pytest.mark.parametrize("name", ["tmp_four_branches", "tripool_k31", "tripool_k5"])
def test_golden(name: str) -> None:
    """All branches in one call, and each of two alone."""
    case = load_case("tmf_module", name)
    constructor = case.info["constructor"]
    channels = constructor["channels"]
    sizes = constructor.get("pool_ksize") or [constructor["pool_size"]]
    keys = context_key_map("m", [f"p.{i}" for i in range(len(sizes))] if len(sizes) > 1 else ["p"])

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        module = load_published(TMP(channels, kernel_sizes=sizes), keys, case).to(dtype)
        both = case.tensor("input_feature_and_mask").to(dtype).requires_grad_()
        y = module(both[:, :channels], both[:, channels:])
        if len(sizes) == 1:
            y = y[:, channels:]
        cotangent = case.tensor("cotangent_output").to(dtype)
        grad, *grads = torch.autograd.grad(y, [both, *module.parameters()], cotangent)
        return {"output": y, "grad_feature_and_mask": grad, **parameter_gradients(module, keys, tuple(grads))}

    check(case, results)


def features(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 6, 7, 5, dtype=dtype), torch.rand(2, 1, 7, 5, dtype=dtype)


def test_unmasked_tmp_is_average_pooling() -> None:
    x, mask = features()
    module = TMP(6, 4, kernel_sizes=(5, 3), masked=False).double().eval()
    reduced = module.branches(x)
    pooled = [F.avg_pool2d(r, k, 1, k // 2, count_include_pad=False) for r, k in zip(reduced.chunk(2, 1), (5, 3), strict=True)]
    torch.testing.assert_close(module(x, mask), torch.cat([x, *pooled], 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_pyramid_pooling_by_hand(masked: bool) -> None:
    """One bin of 2 x 2: the cells of a 7 x 5 map are rows 0-3 and 3-6, columns 0-2 and 2-4."""
    x, mask = features()
    module = PyramidPooling(6, 4, bins=(2,), masked=masked).double().eval()
    weights = mask if masked else torch.ones_like(mask)
    cells = torch.zeros(2, 6, 2, 2, dtype=torch.float64)
    for i, rows in enumerate((slice(0, 4), slice(3, 7))):
        for j, columns in enumerate((slice(0, 3), slice(2, 5))):
            cell = weights[:, :, rows, columns]
            mean = (x[:, :, rows, columns] * cell).mean((2, 3))
            cells[:, :, i, j] = mean / (cell.mean((2, 3)) + 1e-6) if masked else mean
    branch = F.interpolate(module.branches[0](cells), size=(7, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x, mask), torch.cat([x, branch], 1))


@pytest.mark.parametrize("module", [TMP(6, 4), PyramidPooling(6, 4, masked=True)], ids=["tmp", "tp"])
def test_background_has_no_influence(module: torch.nn.Module) -> None:
    """Where the mask is 0, the map only passes through; nothing but background gives 0, not NaN."""
    x, mask = features(torch.float32)
    mask[:, :, :3] = 0
    other = x.clone()
    other[:, :, :3] += 1
    module = module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(other, mask)[:, 6:], module(x, mask)[:, 6:])
        nothing = module(x, torch.zeros_like(mask))
    assert nothing.isfinite().all()
    if isinstance(module, TMP):
        assert (nothing[:, 6:] == 0).all()


@pytest.mark.parametrize("module", [TMP(6, 4), PyramidPooling(6, 4)], ids=["tmp", "ppm"])
def test_shapes(module: torch.nn.Module) -> None:
    x, mask = features(torch.float32)
    y = module(x, mask)
    assert y.shape == (2, module.out_channels, 7, 5)
    assert torch.equal(y[:, :6], x)
    last = module(x.contiguous(memory_format=torch.channels_last), mask)
    torch.testing.assert_close(last, y)
