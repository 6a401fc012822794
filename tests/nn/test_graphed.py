# SPDX-License-Identifier: Apache-2.0
"""When a network is captured anew, and what is refused; that replays are right is tested in tests/models/test_graphed.py."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.nn import GraphedModule, graphed


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs for which a graph was made; what stands for a graph is the model itself."""
    shapes: list[tuple[int, ...]] = []

    def capture(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        shapes.append(tuple(x.shape))
        return model

    monkeypatch.setattr(graphed, "_capture", capture)
    return shapes


def sizes(*sides: int) -> list[Tensor]:
    return [torch.randn(1, 3, side, side) for side in sides]


def test_one_capture_for_each_kind_of_input(captures: list[tuple[int, ...]]) -> None:
    model = nn.Conv2d(3, 2, 3)
    module = GraphedModule(model, max_graphs=9)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(module(x), model(x))
        module(x + 1)
        assert len(captures) == 1
        module(x.contiguous(memory_format=torch.channels_last))
        assert len(captures) == 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(x)
            module(x)
        assert len(captures) == 3
        with use_backend("reference"):
            module(x)
        assert len(captures) == 4
        module(x[:1])
        assert captures[4:] == [(1, 3, 8, 8)]
        module(x)
        assert len(captures) == 5


def test_the_graph_that_was_not_used_for_longest_is_dropped(captures: list[tuple[int, ...]]) -> None:
    module = GraphedModule(nn.Conv2d(3, 2, 3), max_graphs=2)
    for x in sizes(4, 5, 4, 6, 4, 5):
        assert not module(x).requires_grad
    assert [shape[2] for shape in captures] == [4, 5, 6, 5]


def test_conversions_and_copies_begin_without_graphs(captures: list[tuple[int, ...]]) -> None:
    (x,) = sizes(4)
    module = GraphedModule(nn.Conv2d(3, 2, 3))
    module(x)
    module.double()
    module(x.double())
    module.float()
    module(x)
    assert len(captures) == 3
    copy.deepcopy(module)(x)
    assert len(captures) == 4
    module(x)
    assert len(captures) == 4


def test_a_failed_capture_leaves_nothing_behind(captures: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    (x,) = sizes(4)
    module = GraphedModule(nn.Conv2d(3, 2, 3))

    def fail(model: nn.Module, x: Tensor) -> None:
        raise RuntimeError("not permitted when stream is capturing")

    with monkeypatch.context() as patch:
        patch.setattr(graphed, "_capture", fail)
        with pytest.raises(RuntimeError, match="not permitted"):
            module(x)
    module(x)
    assert len(captures) == 1


def test_what_is_refused() -> None:
    (x,) = sizes(4)
    with pytest.raises(ValueError, match="^GraphedModule: max_graphs must be at least 1, got 0$"):
        GraphedModule(nn.Identity(), max_graphs=0)
    model = nn.Dropout()
    module = GraphedModule(model)
    assert not model.training
    with pytest.raises(ValueError, match="^GraphedModule: x must be on a CUDA device, got cpu$"):
        module(x)
    with pytest.raises(ValueError, match="x must need no gradient, which a graph has not, got requires_grad=True$"):
        module(x.clone().requires_grad_())
    with pytest.raises(ValueError, match="module must be in evaluation mode, got training mode$"):
        module.train()(x)
