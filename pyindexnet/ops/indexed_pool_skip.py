# SPDX-License-Identifier: Apache-2.0
"""indexed_pool_skip: schema, fake, autograd, public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import like, like_logits, memory_format
from ..reference.indexed_pool_skip import (
    indexed_pool_skip_backward_reference,
    indexed_pool_skip_double_backward_reference,
    indexed_pool_skip_reference,
)
from ._common import Definition, autocast_inputs, dispatch, register_family
from ._indexed import check_grad, check_image, check_logits, check_options

_OP = "indexed_pool_skip"


def _check(op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str) -> None:
    check_options(op, ratio, normalization)
    check_image(op, "x", x)
    check_logits(op, x, logits, ratio, -(-x.shape[2] // ratio), -(-x.shape[3] // ratio))


def _check_forward(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> None:
    _check(_OP, x, logits, ratio, normalization)


def _check_backward(
    grad_pooled: Tensor,
    grad_skip: Tensor,
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    need_x: bool,
    need_logits: bool,
) -> None:
    op = "indexed_pool_skip_backward"
    _check(op, x, logits, ratio, normalization)
    check_grad(op, "grad_pooled", grad_pooled, x, (x.shape[0], x.shape[1], *logits.shape[3:]))
    check_grad(op, "grad_skip", grad_skip, x, tuple(x.shape))


def _fake(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> tuple[Tensor, Tensor]:
    size, layout = (x.shape[0], x.shape[1], *logits.shape[3:]), memory_format(x)
    return (
        torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout),
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout),
    )


def _fake_backward(
    grad_pooled: Tensor,
    grad_skip: Tensor,
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    need_x: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return grad_x if need_x else x.new_empty(0), torch.empty_like(logits) if need_logits else x.new_empty(0)


def _reference(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> tuple[Tensor, Tensor]:
    pooled, skip = indexed_pool_skip_reference(x, logits, ratio, normalization)
    return like(pooled, x), like(skip, x)


def _reference_backward(
    grad_pooled: Tensor,
    grad_skip: Tensor,
    x: Tensor,
    logits: Tensor,
    ratio: int,
    normalization: str,
    need_x: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_logits = indexed_pool_skip_backward_reference(grad_pooled, grad_skip, x, logits, ratio, normalization)
    return (
        like(grad_x, x) if need_x else x.new_empty(0),
        like_logits(grad_logits, logits) if need_logits else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, logits, ctx.ratio, ctx.normalization = inputs
    ctx.save_for_backward(x, logits)


def _backward(call: Any, ctx: Any, grad_pooled: Tensor, grad_skip: Tensor) -> tuple[Any, ...]:
    x, logits = ctx.saved_tensors
    need_x, need_logits = ctx.needs_input_grad[:2]
    grad_x, grad_logits = call(
        "indexed_pool_skip_backward",
        grad_pooled,
        grad_skip,
        x,
        logits,
        ctx.ratio,
        ctx.normalization,
        need_x,
        need_logits,
    )
    return grad_x if need_x else None, grad_logits if need_logits else None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_pooled, grad_skip, x, logits, ctx.ratio, ctx.normalization, ctx.need_x, ctx.need_logits = inputs
    ctx.save_for_backward(grad_pooled, grad_skip, x, logits)


def _double_backward(call: Any, ctx: Any, grad_grad_x: Tensor, grad_grad_logits: Tensor) -> tuple[Any, ...]:
    grad_pooled, grad_skip, x, logits = saved = ctx.saved_tensors
    grads = indexed_pool_skip_double_backward_reference(
        grad_grad_x if ctx.need_x else torch.zeros_like(x),
        grad_grad_logits if ctx.need_logits else torch.zeros_like(logits),
        grad_pooled,
        grad_skip,
        x,
        logits,
        ctx.ratio,
        ctx.normalization,
    )
    return *(g.to(t.dtype) for g, t in zip(grads, saved, strict=True)), None, None, None, None


register_family(
    _OP,
    Definition(
        "indexed_pool_skip",
        "(Tensor x, Tensor logits, int ratio, str normalization) -> (Tensor, Tensor)",
        _check_forward,
        _fake,
        _reference,
        _setup_context,
        _backward,
    ),
    Definition(
        "indexed_pool_skip_backward",
        "(Tensor grad_pooled, Tensor grad_skip, Tensor x, Tensor logits, int ratio, str normalization, bool need_x,"
        " bool need_logits) -> (Tensor, Tensor)",
        _check_backward,
        _fake_backward,
        _reference_backward,
        _setup_context_backward,
        _double_backward,
    ),
)


def indexed_pool_skip(
    x: Tensor,
    logits: Tensor,
    *,
    ratio: int = 2,
    normalization: str = "sigmoid_softmax",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`indexed_pool`, and the index-multiplied map that it sums.

    skip[n,c,r·i+dy,r·j+dx] = z[n,c,k,i,j] · x[n,c,r·i+dy,r·j+dx],  pooled = its sum over each cell. The UNet decoder of
    IndexNet Matting concatenates ``skip``; one pass reads x and the logits once and writes both.
    Source: [IndexNet] section 4.1 and figure 2.

    Args:
        x, logits, ratio, normalization, backend: as in :func:`indexed_pool`.
    Returns:
        pooled, (N, C, h, w), and skip, (N, C, H, W); dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, logits; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x and logits. Deterministic: yes (no atomics).
    """
    x, logits = autocast_inputs(x, logits) if isinstance(x, Tensor) and isinstance(logits, Tensor) else (x, logits)
    _check(_OP, x, logits, ratio, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization)
