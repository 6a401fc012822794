# SPDX-License-Identifier: Apache-2.0
"""indexed_pool: schema, fake, autograd, public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import like, like_logits, memory_format
from ..reference.indexed_pool import (
    indexed_pool_backward_reference,
    indexed_pool_double_backward_reference,
    indexed_pool_reference,
)
from ._common import Definition, autocast_inputs, dispatch, register_family
from ._indexed import check_grad, check_image, check_logits, check_options

_OP = "indexed_pool"


def _check(op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str) -> None:
    check_options(op, ratio, normalization)
    check_image(op, "x", x)
    check_logits(op, x, logits, ratio, -(-x.shape[2] // ratio), -(-x.shape[3] // ratio))


def _check_forward(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> None:
    _check(_OP, x, logits, ratio, normalization)


def _check_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> None:
    op = "indexed_pool_backward"
    _check(op, x, logits, ratio, normalization)
    check_grad(op, "grad", grad, x, (x.shape[0], x.shape[1], *logits.shape[3:]))


def _fake(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Tensor:
    size = (x.shape[0], x.shape[1], *logits.shape[3:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _fake_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return grad_x if need_x else x.new_empty(0), torch.empty_like(logits) if need_logits else x.new_empty(0)


def _reference(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Tensor:
    return like(indexed_pool_reference(x, logits, ratio, normalization), x)


def _reference_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_logits = indexed_pool_backward_reference(grad, x, logits, ratio, normalization)
    return (
        like(grad_x, x) if need_x else x.new_empty(0),
        like_logits(grad_logits, logits) if need_logits else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, logits, ctx.ratio, ctx.normalization = inputs
    ctx.save_for_backward(x, logits)


def _backward(call: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, logits = ctx.saved_tensors
    need_x, need_logits = ctx.needs_input_grad[:2]
    grad_x, grad_logits = call("indexed_pool_backward", grad, x, logits, ctx.ratio, ctx.normalization, need_x, need_logits)
    return grad_x if need_x else None, grad_logits if need_logits else None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, x, logits, ctx.ratio, ctx.normalization, ctx.need_x, ctx.need_logits = inputs
    ctx.save_for_backward(grad, x, logits)


def _double_backward(call: Any, ctx: Any, grad_grad_x: Tensor, grad_grad_logits: Tensor) -> tuple[Any, ...]:
    grad, x, logits = ctx.saved_tensors
    grads = indexed_pool_double_backward_reference(
        grad_grad_x if ctx.need_x else torch.zeros_like(x),
        grad_grad_logits if ctx.need_logits else torch.zeros_like(logits),
        grad,
        x,
        logits,
        ctx.ratio,
        ctx.normalization,
    )
    return *(g.to(t.dtype) for g, t in zip(grads, (grad, x, logits), strict=True)), None, None, None, None


register_family(
    _OP,
    Definition(
        "indexed_pool",
        "(Tensor x, Tensor logits, int ratio, str normalization) -> Tensor",
        _check_forward,
        _fake,
        _reference,
        _setup_context,
        _backward,
    ),
    Definition(
        "indexed_pool_backward",
        "(Tensor grad, Tensor x, Tensor logits, int ratio, str normalization, bool need_x, bool need_logits)"
        " -> (Tensor, Tensor)",
        _check_backward,
        _fake_backward,
        _reference_backward,
        _setup_context_backward,
        _double_backward,
    ),
)


def indexed_pool(
    x: Tensor,
    logits: Tensor,
    *,
    ratio: int = 2,
    normalization: str = "sigmoid_softmax",
    backend: str | None = None,
) -> Tensor:
    """Sum of each ``ratio x ratio`` cell of ``x``, weighted by normalised index logits.

    y[n,c,i,j] = Σ_k z[n,c,k,i,j] · x[n,c,r·i+dy,r·j+dx],  k = dy·r + dx, z = ``logits`` normalised over the K = r² positions of
    the cell. Positions outside the image (odd sizes) are absent: they take no part in a softmax.
    Source: [IndexNet] section 4.1, indexed pooling; normalisations: [IndexNet] section 4.1 and [Thesis] table 3.5.

    Args:
        x: features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        logits: raw index logits, (N, C, K, h, w), or (N, 1, K, h, w) for one map shared by all channels; h = ceil(H / ratio),
            w = ceil(W / ratio); dtype and device of ``x``; any strides (a transposed view is not copied).
        ratio: side of a cell in pixels of ``x``: 2, 3 or 4.
        normalization: ``none``, ``sigmoid``, ``softmax``, ``sigmoid_softmax`` (softmax of the sigmoid, the paper's encoder) or
            ``softmax_sigmoid``.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, h, w), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, logits; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x and logits; no normalised or shuffled map is written. Deterministic: yes (no atomics).
    """
    x, logits = autocast_inputs(x, logits) if isinstance(x, Tensor) and isinstance(logits, Tensor) else (x, logits)
    _check(_OP, x, logits, ratio, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization)
