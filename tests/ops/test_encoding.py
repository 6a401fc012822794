# SPDX-License-Identifier: Apache-2.0
"""affinity_map and affinity_moments against other definitions of the same, and at their edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet import affinity_map, affinity_moments, backends
from pyindexnet.ops._common import SUFFIX
from pyindexnet.testing import SPECS, measure, tolerance
from pyindexnet.testing.encoding_specs import encoding_sample

from .variants import FLOATS, dtype_id, variants


def convolved(x: Tensor, u: Tensor, stride: int) -> Tensor:
    """One grouped convolution per sample, (N, C, d, h, w)."""
    (c, height, width), (rank, k) = x.shape[1:], u.shape[2:4]
    h, w, before = -(-height // stride), -(-width // stride), (k - 1) // 2
    out = []
    for image, kernels in zip(x, u.expand(x.shape[0], c, -1, -1, -1), strict=True):
        padded = F.pad(image[None], (before, stride * w + k, before, stride * h + k))
        out.append(F.conv2d(padded, kernels.reshape(c * rank, 1, k, k), stride=stride, groups=c)[0, :, :h, :w])
    return torch.stack(out).unflatten(1, (c, rank))


def random(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 4, 5, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_reference_is_a_product_of_convolutions(stride: int, k: int) -> None:
    torch.manual_seed(0)
    x, u, v, affine = random(2, 3, 9, 8), random(2, 3, 2, k, k), random(2, 3, 2, k, k), random(2, 3, 2, 2, 2)
    encodings = [convolved(x, kernels, stride) for kernels in (u, v)]
    options = {"stride": stride, "scale": 0.25, "backend": "reference"}
    torch.testing.assert_close(affinity_map(x, u, v, **options), 0.25 * (encodings[0] * encodings[1]).sum(1))
    lines = [e * affine[..., i, 0, None, None] + affine[..., i, 1, None, None] for i, e in enumerate(encodings)]
    f = [F.leaky_relu(line, 0.2) for line in lines]
    found = affinity_map(x, u, v, affine=affine, negative_slope=0.2, **options)
    torch.testing.assert_close(found, 0.25 * (f[0] * f[1]).sum(1))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_reference_moments_are_those_of_the_convolutions(groups: int) -> None:
    torch.manual_seed(0)
    x, u, v = random(2, 4, 9, 8), random(1, 4, 2, 5, 5), random(1, 4, 2, 5, 5)
    found = affinity_moments(x, u, v, groups=groups, backend="reference")
    for e, kernels in enumerate((u, v)):
        variance, mean = torch.var_mean(convolved(x, kernels, 2).unflatten(1, (groups, -1)), (2, 4, 5), correction=0)
        torch.testing.assert_close(found[..., e, 0], mean)
        torch.testing.assert_close(found[..., e, 1], variance)


@pytest.mark.parametrize("variant", variants())
def test_moments_fold_into_a_group_normalisation(variant: tuple[str, str]) -> None:
    """Moments and affine together are GroupNorm and LeakyReLU of the encodings."""
    backend, device = variant
    torch.manual_seed(0)
    x, u, v = random(2, 4, 8, 6).to(device), random(1, 1, 1, 5, 5).to(device), random(1, 1, 1, 5, 5).to(device)
    weight, bias = random(2, 4).to(device), random(2, 4).to(device)
    moments = affinity_moments(x, u, v, groups=2, backend=backend).repeat_interleave(2, 1)  # (N, C, 1, e, 2)
    factor = weight.T[:, None] * (moments[..., 1] + 1e-5).rsqrt()
    affine = torch.stack([factor, bias.T[:, None] - factor * moments[..., 0]], -1)
    f = [
        F.leaky_relu(F.group_norm(convolved(x, kernels, 2)[:, :, 0], 2, weight[e], bias[e]), 0.01)
        for e, kernels in enumerate((u, v))
    ]
    torch.testing.assert_close(affinity_map(x, u, v, affine=affine, backend=backend)[:, 0], (f[0] * f[1]).sum(1))


@pytest.mark.parametrize("variant", variants())
def test_affine_of_ones_and_zeros_changes_nothing(variant: tuple[str, str]) -> None:
    backend, device = variant
    torch.manual_seed(0)
    x, u, v = random(2, 3, 7, 5).to(device), random(2, 1, 2, 4, 4).to(device), random(2, 1, 2, 4, 4).to(device)
    affine = torch.tensor([1.0, 0.0], dtype=x.dtype, device=device).expand(2, 3, 2, 2, 2)
    plain = affinity_map(x, u, v, backend=backend)
    torch.testing.assert_close(affinity_map(x, u, v, affine=affine, negative_slope=1.0, backend=backend), plain)


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=dtype_id)
@pytest.mark.parametrize("variant", variants())
def test_a_large_mean_leaves_the_variance(variant: tuple[str, str], dtype: torch.dtype) -> None:
    """The mean square of an encoding is 10^6 times its variance; the bound allows for rounding of the encodings alone."""
    backend, device = variant
    torch.manual_seed(0)
    x = (1000 + random(1, 2, 30, 22)).to(dtype)
    u = torch.zeros(1, 1, 1, 3, 3, dtype=dtype)
    u[..., 1, 1] = 1  # the encoding is every second pixel of x
    found = affinity_moments(x.to(device), u.to(device), u.to(device), groups=1, backend=backend).cpu()
    exact = affinity_moments(x.double(), u.double(), u.double(), groups=1, backend="reference")
    count = x[..., ::2, ::2].numel()
    bound = tolerance(exact[..., 1], 0.0, count, dtype)
    assert (found[..., 1] - exact[..., 1]).abs().max() <= bound


BANDS = [
    pytest.param((1, 3, 300, 150), (False, False), 1, 5, False, id="contiguous"),
    pytest.param((1, 20, 100, 70), (False, False), 1, 6, True, id="channels"),
    pytest.param((2, 2, 90, 40), (True, True), 2, 14, True, id="wide"),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("x", "kernels", "rank", "k", "affine"), BANDS)
@pytest.mark.skipif(backends.why_not("affinity_map", "cpu") is not None, reason="the extension has no CPU kernel")
def test_bands(x: tuple[int, int, int, int], kernels: tuple[bool, bool], rank: int, k: int, affine: bool, layout: str) -> None:
    """Maps that the CPU kernels cut into bands of rows, with threads or without."""
    more = {"scale": 0.5, "negative_slope": 0.1}
    for spec, sample in (
        (SPECS["affinity_map"], encoding_sample(x, kernels, rank, k, 2, affine, **more)),
        (SPECS["affinity_moments"], encoding_sample(x, kernels, rank, k, 2, None, groups=2 if x[1] % 2 == 0 else 1)),
    ):
        for row in measure(spec, sample, SUFFIX["cpu"], torch.float32, "cpu", layout):
            assert row.ok, f"{spec.name}: {row}"
