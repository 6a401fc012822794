# SPDX-License-Identifier: Apache-2.0
"""The optimizer of convolution kernels, against PyTorch's and against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyindexnet.matting.training.muon import Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)], ids=str)
def test_orthogonal_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.2, 3, min(shape), dtype=torch.float64)
    turned = u.T @ orthogonal(u * values @ vt) @ vt.T
    got = turned.diagonal()
    assert ((got > 0.65) & (got < 1.25)).all(), got
    torch.testing.assert_close(turned, got.diag(), rtol=0, atol=1e-12)


def test_orthogonal_of_zero_is_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_matrices_step_as_in_pytorch() -> None:
    """PyTorch's runs its iteration in bfloat16, whose eps bounds what five products with values to 1.2 can differ."""
    torch.manual_seed(0)
    weight = torch.randn(8, 6)
    ours, theirs = nn.Parameter(weight.view(8, 6, 1, 1).clone()), nn.Parameter(weight.clone())
    lr, eps = 0.01, torch.finfo(torch.bfloat16).eps
    options = {"lr": lr, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = Muon([ours], **options), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(1, 4):
        grad = torch.randn(8, 6)
        ours.grad, theirs.grad = grad.view_as(ours).clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        size = lr * 0.2 * 8**0.5
        torch.testing.assert_close(ours.detach().view(8, 6), theirs.detach(), rtol=0, atol=step * size * 10 * eps)
        assert (ours.detach().view(8, 6) - weight).norm() > step * size


def test_all_else_steps_as_adamw() -> None:
    torch.manual_seed(0)
    shapes = [(7,), (5, 1, 3, 3), (1, 5, 3, 3)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in values] for values in [[torch.randn(s) for s in shapes]] * 2)
    assert not any(map(is_matrix, ours))
    options = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
    optimizers = Muon(ours, **options), torch.optim.AdamW(theirs, **options)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_layout_of_a_kernel_does_not_matter() -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(weight.clone(memory_format=memory_format))
        parameter.grad = grad.clone(memory_format=memory_format)
        Muon([parameter], lr=0.01, matrix_factor=2).step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(results[0], weight)


def test_learning_rate_and_factor() -> None:
    torch.manual_seed(0)
    kernel, other = torch.randn(6, 4, 3, 3), torch.randn(6)
    moves = []
    for factor in (1.0, 2.0):
        parameters = [nn.Parameter(kernel.clone()), nn.Parameter(other.clone())]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter) + parameter.detach()
        Muon(parameters, lr=0.01, matrix_factor=factor).step()
        moves.append([(p.detach() - before) for p, before in zip(parameters, (kernel, other), strict=True)])
    torch.testing.assert_close(moves[1][0], 2 * moves[0][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moves[1][1], moves[0][1])
