# SPDX-License-Identifier: Apache-2.0
"""Comparing gradients of networks with kinks.

ReLU has no derivative at 0, ReLU6 none at 0 and 6, and max pooling none where two values tie for the maximum. An activation
that lies closer to a kink than float32 rounding can fall on either side of it in a float32 run, and one that falls on the other
side changes the whole gradient by far more than rounding. A published float32 gradient is therefore one of several correct
ones: that of the exact function with, at each such activation, one derivative or the other. :func:`gradients_near` looks for it
among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Flips = frozenset[tuple["Kinked", int]]


class _Kinked(torch.autograd.Function):
    """``module.value(x)`` whose backward is ``module.gradient(grad)``, read when it runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Kinked) -> Tensor:
        ctx.module = module
        return module.value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.module.gradient(grad), None


class Kinked(nn.Module):
    """An activation that takes the other derivative at the flat indices in ``flipped``.

    Attributes:
        seen: its input.
        margin: distance of each element of the output from its nearest kink, in units of the input.
        side: which piece of the function each element is on.
    """

    seen: Tensor
    margin: Tensor
    side: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.flipped: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "seen"):
            raise RuntimeError("an activation that a forward pass uses twice cannot be told apart here")
        return _Kinked.apply(x.contiguous(), self)

    def value(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def gradient(self, grad: Tensor) -> Tensor:
        raise NotImplementedError

    def switch(self, index: int) -> tuple[int, ...]:
        """What element ``index`` depends on: elements with the same flip together."""
        return (index,)


class KinkedClamp(Kinked):
    """x in [0, high], beyond it ``slope`` times the distance: ReLU, Leaky ReLU, ReLU6.

    Its other derivative is ``slope`` for 1 and 1 for ``slope``.
    """

    def __init__(self, high: float = float("inf"), slope: float = 0.0) -> None:
        super().__init__()
        self.high = high
        self.slope = slope

    def value(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        self.margin = torch.minimum(x.abs(), (x - self.high).abs()).flatten()
        self.side = ((x > 0) & (x < self.high)).flatten()
        clamped = x.clamp(0, self.high)
        return clamped + self.slope * (x - clamped)

    def gradient(self, grad: Tensor) -> Tensor:
        inside = self.side.clone()
        for index in self.flipped:
            inside[index] ^= True
        return grad * torch.where(inside, 1.0, self.slope).to(grad.dtype).view_as(grad)


class KinkedMaxPool2d(Kinked):
    """Max pooling; its other derivative goes to the second largest value of the window.

    That is the first position of the next smaller value: positions can be equal by construction, behind an earlier pooling, and
    then are in every run.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.window = int(pool.kernel_size), int(pool.stride), int(pool.padding)

    def value(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        n, c, h, w = x.shape
        k, stride, padding = self.window
        y, winner = F.max_pool2d(x, k, stride, padding, return_indices=True)
        windows = F.unfold(F.pad(x, [padding] * 4, value=-torch.inf), k, stride=stride).view(n, c, k * k, -1)
        positions = torch.arange(1, h * w + 1, dtype=x.dtype).view(1, 1, h, w)  # 0 is outside
        positions = F.unfold(positions, k, padding=padding, stride=stride).long().view(1, 1, k * k, -1) - 1
        windows = windows.masked_fill(windows == y.view(n, c, 1, -1), -torch.inf)
        slot = windows.argmax(2, keepdim=True)
        self.runner_up = positions.expand(n, c, -1, -1).gather(2, slot).flatten()
        self.margin = y.flatten() - windows.gather(2, slot).flatten()
        self.side = winner.flatten()
        return y

    def gradient(self, grad: Tensor) -> Tensor:
        winner = self.side.clone()
        for index in self.flipped:
            winner[index] = self.runner_up[index]
        n, c = grad.shape[:2]
        spread = torch.zeros_like(self.seen).view(n, c, -1)
        return spread.scatter_add_(2, winner.view(n, c, -1), grad.reshape(n, c, -1)).view_as(self.seen)

    def switch(self, index: int) -> tuple[int, ...]:
        plane = index // (self.side.numel() // (self.seen.shape[0] * self.seen.shape[1]))
        return plane, *sorted((int(self.side[index]), int(self.runner_up[index])))


def with_kinks(model: nn.Module) -> nn.Module:
    """A copy of the model with every ReLU, Leaky ReLU, ReLU6 and max pooling replaced."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, KinkedClamp(high=6.0))
            elif isinstance(child, nn.ReLU):
                setattr(module, name, KinkedClamp())
            elif isinstance(child, nn.LeakyReLU):
                setattr(module, name, KinkedClamp(slope=child.negative_slope))
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, KinkedMaxPool2d(child))
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
        activations[dtype] = [m for m in net.modules() if isinstance(m, Kinked)]

    def gradients(flips: Flips, count: int | None = 1) -> tuple[Tensor, ...]:
        for module, index in flips:
            module.flipped.add(index)
        found = torch.autograd.grad(output, wrt[:count], cotangent, retain_graph=True)
        for module, _ in flips:
            module.flipped.clear()
        return found

    candidates = _candidates(activations[torch.float32], activations[torch.float64])
    # the exact run, or the pattern of this machine's float32 run
    starts = [frozenset(), frozenset().union(*(flips for same, _, flips in candidates if not same))]
    start = best = min(starts, key=lambda flips: (gradients(flips)[0] - target).norm().item())
    plain = nearest = gradients(start)[0]
    effects: list[Tensor] = []
    for _, _, flips in candidates:
        if (nearest - target).abs().max() <= tolerance:
            break
        effects.append(gradients(start ^ flips)[0] - plain)
        chosen = start
        for k in _explain(target - plain, effects):
            chosen = chosen ^ candidates[k][2]
        (new,) = gradients(chosen)
        if (new - target).norm() < (nearest - target).norm():
            best, nearest = chosen, new
    return gradients(best, None)


def _candidates(rounded_run: Sequence[Kinked], exact_run: Sequence[Kinked]) -> list[tuple[bool, float, Flips]]:
    """Activations nearer to a kink than rounding: (same side in both runs, distance over rounding, flips), likeliest first."""
    groups: dict[Any, tuple[bool, float, Flips]] = {}
    for n, (rounded, exact) in enumerate(zip(rounded_run, exact_run, strict=True)):
        distance = exact.margin / (rounded.seen - exact.seen).abs().max()
        # a value exactly at a kink (a sum of clipped values) is there in every run
        for i in ((distance > 0) & (distance < 1)).nonzero().flatten().tolist():
            key = (n, *exact.switch(i))
            same, nearest, flips = groups.get(key, (True, 1.0, frozenset()))
            same = same and bool(rounded.side[i] == exact.side[i])
            groups[key] = (same, min(nearest, distance[i].item()), flips | {(exact, i)})
    return sorted(groups.values(), key=lambda group: group[:2])


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
