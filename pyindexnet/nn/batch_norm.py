# SPDX-License-Identifier: Apache-2.0
"""Batch norm and the activation behind it in training, as one function that keeps one map.

``act(norm(x))`` keeps the input of the norm and that of the activation for the backward pass, and the next convolution the
output of both. Here the input of the norm alone is kept: ReLU and ReLU6 cannot be inverted, but which values they passed
follows from x and the statistics. :mod:`pyindexnet.ops.batch_norm` has the kernels.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyindexnet import backends
from pyindexnet.ops.batch_norm import (
    batch_norm_activation,
    batch_norm_activation_backward,
    batch_norm_statistics,
    statistics_dtype,
    why_not,
)

HALF = (torch.float16, torch.bfloat16)
#: Tables of hooks of nn.Module: a fused function does not call the layers that they hang on.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Slope below 0 and upper bound of the activations that are fused; of a slope other than 0 the bound is not looked at.
_ACTIVATIONS: dict[type[nn.Module], Any] = {
    nn.Identity: lambda act: (1.0, math.inf),
    nn.ReLU: lambda act: (0.0, math.inf),
    nn.ReLU6: lambda act: (0.0, 6.0),
    nn.LeakyReLU: lambda act: (act.negative_slope, math.inf) if act.negative_slope > 0 else None,
}


class Norm(Protocol):
    """What keeps running statistics, as nn.BatchNorm2d does."""

    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor


def count_batch(norm: Norm) -> float:
    """Counts a batch; its weight in the running statistics."""
    norm.num_batches_tracked += 1
    return 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


@torch.no_grad()
def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x (N, C, ...); of half types in float32."""
    if why_not(x) is None and backends.forced() in (None, "cpu"):
        return batch_norm_statistics(x)
    # Without buffers a CPU gives the statistics of a half type in that type, which overflows at 65,504.
    buffer = x.new_zeros(2, x.shape[1], dtype=torch.float32) if x.dtype in HALF else (None, None)
    mean, var = torch.batch_norm_update_stats(x, buffer[0], buffer[1], 0.0)
    return mean, var


@torch.no_grad()
def track_statistics(norm: Norm, mean: Tensor, var: Tensor, count: int) -> None:
    """The running statistics of ``norm`` follow those of a batch of ``count`` >= 2 values per channel; ``var`` is biased."""
    factor = count_batch(norm)
    norm.running_mean.lerp_(mean.to(norm.running_mean), factor)
    norm.running_var.lerp_(var.to(norm.running_var) * (count / (count - 1)), factor)


def normalize_and_activate(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(norm(x))``, fused where that can be done and derivatives are wanted, else by calling the two.

    Fused are an ``nn.BatchNorm2d`` with affine parameters and running statistics, in training or evaluation mode, and ReLU,
    ReLU6, Leaky ReLU or an identity, on the CPU. Not fused: subclasses and other norms (SyncBatchNorm), modules with hooks,
    what ``torch.compile``, ``torch.export``, tracing or ``torch.func`` transform, and the backend ``reference``.

    Shape: x (N, C, H, W) -> the same.
    Gradients: x, weight and bias of ``norm``; differentiable any number of times.
    Memory: keeps x; two calls keep x and norm(x).
    """
    shape = None if captured() else _activation(act)
    if shape is None or not _fusable(norm, act, x):
        x = norm(x)  # lets go of the input before the activation
        return act(x)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if norm.training:
        mean, var = batch_statistics(x)
        track_statistics(norm, mean, var, x.numel() // x.shape[1])  # type: ignore[arg-type]
    else:
        mean, var = norm.running_mean, norm.running_var
    return _BatchNormActivation.apply(x, norm.weight, norm.bias, mean, var, norm.eps, *shape, norm.training)


def _activation(act: nn.Module) -> tuple[float, float] | None:
    """Slope and bound; None where the activation is not fused."""
    shape = _ACTIVATIONS.get(type(act))
    return None if shape is None else shape(act)


def _fusable(norm: nn.Module, act: nn.Module, x: Tensor) -> bool:
    if type(norm) is not nn.BatchNorm2d or norm.weight is None or norm.running_mean is None or why_not(x) is not None:
        return False
    if x.shape[1] != norm.num_features or (norm.training and x.numel() < 2 * x.shape[1]):
        return False  # an error of the norm's own
    needed = x.requires_grad or norm.weight.requires_grad or norm.bias.requires_grad
    if not (torch.is_grad_enabled() and needed) or backends.forced() not in (None, "cpu"):
        return False
    return not (hooked(norm) or hooked(act) or captured(x, norm.weight, norm.bias))


def captured(*tensors: Tensor) -> bool:
    """Whether something records or transforms the operators that run, or ``tensors`` carry tangents of forward-mode
    derivatives: the operators must be PyTorch's own then."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def needs_formula(grad: Tensor) -> bool:
    """Whether a backward pass is to be differentiated itself, or runs for several gradients ``grad`` at once."""
    return torch.is_grad_enabled() or captured() or torch._C._functorch.is_legacy_batchedtensor(grad)


def hooked(module: nn.Module) -> bool:
    """Whether something is to be called together with the module, or in place of its forward."""
    own = any(getattr(module, hooks) for hooks in HOOKS)
    return own or "forward" in vars(module) or nn.modules.module._has_any_global_hook()


class _BatchNormActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        slope: float,
        high: float,
        batch: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.shape, ctx.batch = {"eps": eps, "slope": slope, "high": high}, batch
        return batch_norm_activation(x, *_of_channels(x, mean, var, weight, bias), **ctx.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        if needs_formula(grad):
            grads = _by_formula(grad, x, weight, bias, None if ctx.batch else (mean, var), **ctx.shape)
        else:
            parameters = _of_channels(x, mean, var, weight, bias)
            found = batch_norm_activation_backward(grad, x, *parameters, **ctx.shape, batch=ctx.batch)
            grads = [g.to(t.dtype) for g, t in zip(found, (x, weight, bias), strict=True)]
        needed = zip(grads, ctx.needs_input_grad[:3], strict=True)
        return *(g if need else None for g, need in needed), *(None,) * 6


def _of_channels(x: Tensor, *values: Tensor) -> list[Tensor]:
    dtype = statistics_dtype(x)
    return [t.detach().to(dtype).contiguous() for t in values]


def _by_formula(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fixed: tuple[Tensor, Tensor] | None,
    *,
    eps: float,
    slope: float,
    high: float,
) -> list[Tensor | None]:
    """Gradients of x, weight and bias as functions that can be differentiated."""
    mean, var = (None, None) if fixed is None else fixed
    with torch.enable_grad():
        y = F.batch_norm(x, mean, var, weight, bias, training=fixed is None, eps=eps)
        if slope != 1:
            y = y.clamp(0, high) if slope == 0 else F.leaky_relu(y, slope)
        inputs = [t for t in (x, weight, bias) if t.requires_grad]
        found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in (x, weight, bias)]
