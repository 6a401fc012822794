# SPDX-License-Identifier: Apache-2.0
"""Pairs of down- and upsampling, and the ASPP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyindexnet.nn import (
    ASPP,
    BilinearUpsampling,
    CarafeUpsampling,
    DepthwiseIndexNetwork,
    HolisticMaxIndex,
    IndexedResampling,
    MaxUnpooling,
)
from pyindexnet.ops import indexed_pool, indexed_pool_skip, indexed_upsample

SIZES = [(8, 6), (7, 6), (5, 9), (1, 1)]


def pairs() -> dict:
    return {
        "max": MaxUnpooling(),
        "bilinear": BilinearUpsampling(),
        "carafe": CarafeUpsampling(3),
        "m2o": IndexedResampling(DepthwiseIndexNetwork(3).eval()),
        "hmi": IndexedResampling(HolisticMaxIndex(), encoder="none", decoder="none", keep_raw=True),
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["max", "bilinear", "carafe", "m2o", "hmi"])
def test_sizes(name: str, size: tuple[int, int]) -> None:
    pair = pairs()[name]
    x = torch.randn(2, 3, *size)
    pooled, skip, guide = pair.reduce(x, keep=True)
    assert pooled.shape == (2, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert skip.shape == x.shape
    assert pair.restore(pooled, guide).shape == x.shape


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_max_unpooling_puts_each_maximum_back(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size) + 1
    pooled, skip, guide = MaxUnpooling().reduce(x, keep=True)
    restored = MaxUnpooling().restore(pooled, guide)
    assert skip is x
    assert torch.equal(restored[restored != 0], x[restored != 0])
    assert torch.equal((restored != 0).sum(), torch.tensor(pooled.numel()))


def test_holistic_max_index_moves_all_channels_alike() -> None:
    x = torch.randn(2, 3, 6, 8)
    pair = pairs()["hmi"]
    pooled, skip, guide = pair.reduce(x, keep=True)
    restored = pair.restore(pooled, guide)
    where = F.max_unpool2d(*F.max_pool2d(x.amax(1, keepdim=True), 2, return_indices=True), 2) != 0
    assert torch.equal(restored, x * where)
    assert torch.equal(pooled, F.avg_pool2d(x * where, 2) * 4)
    assert skip is x


@pytest.mark.parametrize(("encoder", "decoder"), [("sigmoid_softmax", "sigmoid"), ("softmax_sigmoid", "softmax")])
def test_indexed_pair_calls_the_operators(encoder: str, decoder: str) -> None:
    net = DepthwiseIndexNetwork(3).eval()
    pair = IndexedResampling(net, encoder=encoder, decoder=decoder)
    x, y = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 3, 4)
    logits = net(x)
    pooled, skip, guide = pair.reduce(x, keep=True)
    want = indexed_pool_skip(x, logits, normalization=encoder)
    assert torch.equal(pooled, want[0])
    assert torch.equal(skip, want[1])
    assert torch.equal(pair.restore(y, guide), indexed_upsample(y, logits, normalization=decoder))
    # without a fused map: plain pooling, and the map itself
    pooled, skip, _ = pair.reduce(x, keep=False)
    assert torch.equal(pooled, indexed_pool(x, logits, normalization=encoder))
    assert skip is x


def test_aspp_mean_branch_is_nearest_resized() -> None:
    """The published block resizes the mean of the map, one pixel, with nearest neighbours."""
    torch.manual_seed(0)
    aspp = ASPP(6, 5, hidden=4).eval()
    x = torch.randn(2, 6, 5, 7)
    mean = F.interpolate(aspp.image(F.adaptive_avg_pool2d(x, 1)), size=(5, 7), mode="nearest")
    branches = [aspp.point(x), *(branch(x) for branch in aspp.atrous), mean]
    torch.testing.assert_close(aspp(x), aspp.merge(torch.cat(branches, 1)))


def test_aspp_drops_out_in_training_only() -> None:
    torch.manual_seed(0)
    aspp = ASPP(6, 200, hidden=4)
    x = torch.randn(4, 6, 5, 7)
    dropped = (aspp(x) == 0).float().mean()
    aspp.dropout.p = 0.0
    kept = (aspp(x) == 0).float().mean()
    assert dropped > kept + 0.1
    aspp.dropout.p = 0.5
    aspp.eval()
    assert torch.equal(aspp(x), aspp(x))
