# SPDX-License-Identifier: Apache-2.0
"""Muon (K. Jordan et al., 2024) for networks of convolutions: momentum, made orthogonal by Newton and Schulz' iteration.

``torch.optim.Muon`` refuses the four dimensions of a convolution's kernel, and works in bfloat16, in which most CPUs are slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Of the odd polynomial a s + b s^3 + c s^5, which brings singular values near 1 in five steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
#: An orthogonal matrix times this and the root of its longer side changes values as much as AdamW does.
_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for kernels that mix channels, (C_out, C_in, kh, kw) as C_out rows; AdamW for all else.

        matrix:  m = beta m + (1 - beta) g,  u = (1 - beta) g + beta m,
                 w = (1 - lr decay) w - lr matrix_factor 0.2 sqrt(max(rows, columns)) orthogonal(u)
        else:    AdamW

    Kernels with one output or one input for each group, as depthwise ones, are no matrices.

    Args:
        params: parameters or groups of them. lr: of both rules. betas: of AdamW. momentum: beta of the matrices.
        matrix_factor: rate of the matrices over that of the others. weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        matrix_factor: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "matrix_factor": matrix_factor}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._matrix if is_matrix(parameter) else self._adam
                update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _matrix(self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        rows = grad.lerp(momentum, group["momentum"]).flatten(1)
        size = group["lr"] * group["matrix_factor"] * _RMS * math.sqrt(max(rows.shape))
        weight.add_(orthogonal(rows).view(weight.shape), alpha=-size)

    def _adam(self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(grad, 1 - first)
        square = state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        scale = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        weight.addcdiv_(mean, scale, value=-group["lr"] / (1 - first ** state["step"]))


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter mixes channels: a convolution's or linear layer's, with several outputs and several inputs."""
    return parameter.dim() >= 2 and parameter.shape[0] > 1 and parameter.shape[1] > 1


def orthogonal(matrix: Tensor) -> Tensor:
    """Near U V^T of the singular value decomposition U S V^T: its singular values are 0.7 to 1.2, those near 0 stay there.

    Args:
        matrix: (rows, columns), float32 or float64; half types work in float32.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    x = wide / (wide.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if tall else x).to(matrix.dtype)
