# SPDX-License-Identifier: Apache-2.0
"""Comparing gradients of networks whose activations have kinks.

ReLU6 has no derivative at 0 and 6. An activation that lies closer to a kink than float32 rounding can fall on either side of
it in a float32 run, and one that falls on the other side changes the whole gradient by far more than rounding. A published
float32 gradient is therefore one of several correct ones: that of the exact function with, at each such activation, one
derivative or the other. :func:`gradients_near` looks for it among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Kinked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: KinkedReLU6) -> Tensor:
        ctx.module = module
        module.seen = x.detach()
        return x.clamp(0, 6)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x = ctx.module.seen
        slope = (x > 0) & (x < 6)
        for index in ctx.module.flipped:
            slope.view(-1)[index] ^= True
        return grad * slope, None


class KinkedReLU6(nn.Module):
    """ReLU6 that keeps its input and takes the other derivative at the flat indices in ``flipped``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)
        self.flipped: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        return _Kinked.apply(x.contiguous(), self)


def with_kinks(model: nn.Module) -> nn.Module:
    """A copy of the model with every ReLU6 replaced."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, KinkedReLU6())
    return model


def gradients_near(
    model: nn.Module,
    run: Callable[[nn.Module], tuple[Tensor, Tensor, list[Tensor]]],
    target: Tensor,
    tolerance: float,
) -> tuple[Tensor, ...]:
    """Float64 gradients of the model, with the derivatives at ambiguous activations that bring the first nearest to target.

    Args:
        model: float32, unchanged.
        run: calls a model and returns its output, the cotangent, and the tensors to differentiate with respect to.
        target: published gradient with respect to the first of them.
        tolerance: stop once the largest difference is below.
    """
    activations = {}
    for dtype in (torch.float32, torch.float64):
        net = with_kinks(model).to(dtype)
        output, cotangent, wrt = run(net)
        activations[dtype] = [m for m in net.modules() if isinstance(m, KinkedReLU6)]

    def gradients(flips: list[tuple[KinkedReLU6, int]]) -> tuple[Tensor, ...]:
        for module, index in flips:
            module.flipped.add(index)
        found = torch.autograd.grad(output, wrt, cotangent, retain_graph=True)
        for module, _ in flips:
            module.flipped.clear()
        return found

    candidates = []
    for rounded, exact in zip(activations[torch.float32], activations[torch.float64], strict=True):
        noise = (rounded.seen - exact.seen).abs().max()
        distance = torch.minimum(exact.seen.abs(), (exact.seen - 6).abs()).flatten() / noise
        # a value exactly at a kink (a sum of clipped values) is there in every run
        near = ((distance > 0) & (distance < 1)).nonzero().flatten().tolist()
        candidates += [(distance[i].item(), exact, i) for i in near]
    candidates.sort(key=lambda candidate: candidate[0])

    plain = best = gradients([])
    effects: list[Tensor] = []
    for _, module, index in candidates:
        if (best[0] - target).abs().max() <= tolerance:
            break
        effects.append(gradients([(module, index)])[0] - plain[0])
        chosen = _explain(target - plain[0], effects)
        new = gradients([candidates[k][1:] for k in chosen])
        if (new[0] - target).norm() < (best[0] - target).norm():
            best = new
    return best


def _explain(residual: Tensor, effects: list[Tensor]) -> list[int]:
    """Indices of the effects whose sum is nearest to the residual, chosen one by one."""
    matrix = torch.stack(effects).flatten(1)
    squares = matrix.square().sum(1)
    rest, chosen = residual.flatten(), []
    while True:
        gain = 2 * matrix @ rest - squares
        gain[chosen] = 0
        k = int(gain.argmax())
        if gain[k] <= 0:
            return chosen
        chosen.append(k)
        rest = rest - matrix[k]
