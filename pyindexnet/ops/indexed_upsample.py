# SPDX-License-Identifier: Apache-2.0
"""indexed_upsample: schema, fake, autograd, public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.index_cell import like, like_logits, memory_format
from ..reference.indexed_upsample import (
    indexed_upsample_backward_reference,
    indexed_upsample_double_backward_reference,
    indexed_upsample_reference,
)
from ._common import Definition, autocast_inputs, dispatch, register_family
from ._indexed import check_grad, check_image, check_logits, check_options

_OP = "indexed_upsample"


def _check(
    op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str, output_size: Sequence[int] | None
) -> tuple[int, int]:
    """The output size (H, W)."""
    check_options(op, ratio, normalization)
    check_image(op, "x", x)
    h, w = x.shape[2:]
    if output_size is None:
        output_size = (h * ratio, w * ratio)
    if len(output_size) != 2:
        raise ValueError(f"{op}: output_size must be (H, W), got {tuple(output_size)}")
    height, width = output_size
    if -(-height // ratio) != h or -(-width // ratio) != w:
        raise ValueError(
            f"{op}: output_size must be within ({ratio * (h - 1) + 1}..{ratio * h}, {ratio * (w - 1) + 1}..{ratio * w}), "
            f"got ({height}, {width})"
        )
    check_logits(op, x, logits, ratio, h, w)
    return height, width


def _check_forward(x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> None:
    _check(_OP, x, logits, ratio, normalization, (height, width))


def _check_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> None:
    op = "indexed_upsample_backward"
    check_image(op, "grad", grad)
    _check(op, x, logits, ratio, normalization, grad.shape[2:])
    check_grad(op, "grad", grad, x, (x.shape[0], x.shape[1], *grad.shape[2:]))


def _fake(x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> Tensor:
    size = (x.shape[0], x.shape[1], height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _fake_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    return grad_x if need_x else x.new_empty(0), torch.empty_like(logits) if need_logits else x.new_empty(0)


def _reference(x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> Tensor:
    return like(indexed_upsample_reference(x, logits, ratio, normalization, height, width), x)


def _reference_backward(
    grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str, need_x: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_logits = indexed_upsample_backward_reference(grad, x, logits, ratio, normalization)
    return (
        like(grad_x, x) if need_x else x.new_empty(0),
        like_logits(grad_logits, logits) if need_logits else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, logits, ctx.ratio, ctx.normalization, _, _ = inputs
    ctx.save_for_backward(x, logits)


def _backward(call: Any, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, logits = ctx.saved_tensors
    need_x, need_logits = ctx.needs_input_grad[:2]
    grad_x, grad_logits = call("indexed_upsample_backward", grad, x, logits, ctx.ratio, ctx.normalization, need_x, need_logits)
    return grad_x if need_x else None, grad_logits if need_logits else None, None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, x, logits, ctx.ratio, ctx.normalization, ctx.need_x, ctx.need_logits = inputs
    ctx.save_for_backward(grad, x, logits)


def _double_backward(call: Any, ctx: Any, grad_grad_x: Tensor, grad_grad_logits: Tensor) -> tuple[Any, ...]:
    grad, x, logits = ctx.saved_tensors
    grads = indexed_upsample_double_backward_reference(
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
        "indexed_upsample",
        "(Tensor x, Tensor logits, int ratio, str normalization, SymInt height, SymInt width) -> Tensor",
        _check_forward,
        _fake,
        _reference,
        _setup_context,
        _backward,
    ),
    Definition(
        "indexed_upsample_backward",
        "(Tensor grad, Tensor x, Tensor logits, int ratio, str normalization, bool need_x, bool need_logits)"
        " -> (Tensor, Tensor)",
        _check_backward,
        _fake_backward,
        _reference_backward,
        _setup_context_backward,
        _double_backward,
    ),
)


def indexed_upsample(
    x: Tensor,
    logits: Tensor,
    *,
    ratio: int = 2,
    normalization: str = "sigmoid",
    output_size: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Nearest-neighbour upsampling of ``x``, weighted by normalised index logits.

    y[n,c,r·i+dy,r·j+dx] = z[n,c,k,i,j] · x[n,c,i,j],  k = dy·r + dx, z = ``logits`` normalised over the K = r² positions of the
    cell. Positions cut off by ``output_size`` are absent: as in :func:`indexed_pool`, they take no part in a softmax.
    Source: [IndexNet] section 4.1, indexed upsampling; normalisations: [IndexNet] section 4.1 and [Thesis] table 3.5.

    Args:
        x: features, (N, C, h, w); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        logits: raw index logits, (N, C, K, h, w), or (N, 1, K, h, w) for one map shared by all channels; dtype and device of
            ``x``; any strides (a transposed view is not copied).
        ratio: side of a cell in pixels of the output: 2, 3 or 4.
        normalization: ``none``, ``sigmoid`` (the paper's decoder), ``softmax``, ``sigmoid_softmax`` or ``softmax_sigmoid``.
        output_size: (H, W) with ceil(H / ratio) = h and ceil(W / ratio) = w; None: (ratio * h, ratio * w).
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, H, W), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, logits; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x and logits; no normalised or shuffled map is written. Deterministic: yes (no atomics).
    """
    x, logits = autocast_inputs(x, logits) if isinstance(x, Tensor) and isinstance(logits, Tensor) else (x, logits)
    height, width = _check(_OP, x, logits, ratio, normalization, output_size)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization, height, width)
