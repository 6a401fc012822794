# SPDX-License-Identifier: Apache-2.0
"""What every network does at any size."""

from __future__ import annotations

from torch import Tensor, nn


def assert_trains(model: nn.Module, x: Tensor) -> None:
    """One channel of the size of ``x``, and finite gradients of ``x`` and of every parameter."""
    y = model(x)
    assert y.shape == (x.shape[0], 1, *x.shape[2:])
    y.sum().backward()
    for name, grad in [("x", x.grad), *((n, p.grad) for n, p in model.named_parameters())]:
        assert grad is not None, name
        assert grad.isfinite().all(), name
