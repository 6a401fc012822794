# SPDX-License-Identifier: Apache-2.0
"""Convolutions by minimal filtering, forward and backward, where :mod:`pyindexnet.ops.winograd` has kernels for them.

All three products of a training step are filtered: the convolution, the gradient of its input, which is a convolution with the
kernel turned round, and that of its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyindexnet import backends
from pyindexnet.nn.batch_norm import captured, hooked, needs_formula
from pyindexnet.ops import winograd
from pyindexnet.ops.winograd import transform_weight, winograd_convolution, winograd_weight_gradient

#: Side of the kernels that are convolved by minimal filtering: it saves a 3 x 3 kernel less and costs it more accuracy.
FILTERED_SIZE = 5
MOST_WEIGHTS = 1 << 16  # input times output channels: 16 MiB when transformed
_FEWEST_PIXELS = 4096  # in training, where weights are transformed at every step: docs/performance.md


def filterable(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that minimal filtering pays for."""
    out, channels, *size = conv.weight.shape
    return (
        (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and size == [FILTERED_SIZE, FILTERED_SIZE]
        and conv.padding == (FILTERED_SIZE // 2, FILTERED_SIZE // 2)
        and out * channels <= MOST_WEIGHTS
    )


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``; in training in float32 on the CPU, 5 x 5 kernels on channels_last maps by minimal filtering.

    Errors are then about four times those of the direct sum. As for batch norms, see
    :func:`pyindexnet.nn.batch_norm.normalize_and_activate`, hooks, ``torch.compile``, ``torch.func``, autocast and the backend
    ``reference`` call the module as it is.

    Shape: of ``conv``.
    Gradients: x, weight and bias; differentiable any number of times.
    """
    return _FilteredConvolution.apply(x, conv.weight, conv.bias) if _filters(conv, x) else conv(x)


def _filters(conv: nn.Conv2d, x: Tensor) -> bool:
    if captured() or type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or not filterable(conv) or x.dim() != 4:
        return False
    if (
        x.shape[1] != conv.in_channels
        or x.dtype != torch.float32
        or conv.weight.dtype != x.dtype
        or not torch.is_grad_enabled()
    ):
        return False
    if not (x.requires_grad or conv.weight.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    if hooked(conv) or captured(x, conv.weight):
        return False
    if backends.forced() not in (None, "cpu") or winograd.why_not(x, conv.weight, training=True) is not None:
        return False
    return x.shape[0] * x.shape[2] * x.shape[3] >= _FEWEST_PIXELS


class _FilteredConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _filtered(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need = list(ctx.needs_input_grad)
        direct = needs_formula(grad)
        by_filter = [not direct and n and grad.shape[1] >= winograd.VECTOR for n in need[:2]] + [False]
        rest = [n and not f for n, f in zip(need, by_filter, strict=True)]
        found: list[Tensor | None] = [None] * 3
        if any(rest):
            sizes = None if not ctx.has_bias else [weight.shape[0]]
            pad = [FILTERED_SIZE // 2] * 2
            found = list(
                torch.ops.aten.convolution_backward(grad, x, weight, sizes, [1, 1], pad, [1, 1], False, [0, 0], 1, rest)
            )
        if any(by_filter) and grad.stride(1) != 1:
            grad = grad.contiguous(memory_format=torch.channels_last)
        if by_filter[0]:
            found[0] = _filtered(grad, weight.flip(2, 3).transpose(0, 1), None)
        if by_filter[1]:
            found[1] = winograd_weight_gradient(grad, x).contiguous(memory_format=_format(weight))
        return tuple(found)


def _filtered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels = weight.shape[0]
    return winograd_convolution(x, *transform_weight(weight, bias), channels=channels, kernel_size=FILTERED_SIZE)


def _format(weight: Tensor) -> torch.memory_format:
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last
