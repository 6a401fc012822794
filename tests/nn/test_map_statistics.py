# SPDX-License-Identifier: Apache-2.0
"""Statistics of a map: a TorchFunctionMode sees them by name; without one they are what they wrap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyindexnet import affinity_moments
from pyindexnet.nn import AffinityUpDown
from pyindexnet.nn.map_statistics import cell_means, encoding_moments


class Seen(TorchFunctionMode):
    """Lists the statistics that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (cell_means, encoding_moments):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def tensors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 32, 11, 14), torch.randn(2, 1, 1, 5, 5)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["cell_means", "affinity_moments"]),
        ({"variant": "hybrid"}, ["cell_means", "affinity_moments"]),
        ({"variant": "static"}, ["affinity_moments"]),
    ],
    ids=str,
)
def test_a_mode_sees_them_and_changes_nothing(options: dict[str, Any], names: list[str]) -> None:
    x, _ = tensors()
    module = AffinityUpDown(32, normalize=True, **options)
    with Seen() as seen, torch.no_grad():
        found = module.kernels(x)
    assert seen.names == names
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(found, module.kernels(x), strict=True))


def test_values() -> None:
    x, u = tensors()
    assert torch.equal(encoding_moments(x, u, u, groups=4), affinity_moments(x, u, u, groups=4))
    found = cell_means(x, 5)
    torch.testing.assert_close(found[:, :, :5, :5], F.adaptive_avg_pool2d(x, 5))
    torch.testing.assert_close(found[:, :, 5:, 5:], x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_in_one_graph(dynamic: bool) -> None:
    x, _ = tensors()
    module = AffinityUpDown(32, normalize=True).eval()

    def kernels(x: Tensor) -> tuple[Tensor, ...]:
        a, up, down = module.kernels(x)
        assert down is not None
        return a, up, down

    compiled = torch.compile(kernels, fullgraph=True, backend="eager", dynamic=dynamic)
    for found, expected in zip(compiled(x), kernels(x), strict=True):
        torch.testing.assert_close(found, expected)
