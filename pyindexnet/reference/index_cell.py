# SPDX-License-Identifier: Apache-2.0
"""The pass over cells that all indexed operators share, with its first and second derivatives.

Every operator multiplies a factor ``t`` by the normalised logits, ``u_k = z_k t_k``; they differ in what ``t`` is (a high- or
a low-resolution tensor) and in whether ``u`` or its sum over the cell is kept. With ``o`` the tensor whose gradient is not
asked (see the operators), a backward is ``u`` again and

    grad_logits = J^T (t o).

Its own derivative, for cotangents U of ``u`` and V of ``grad_logits``, from S = <U, z t> + <J V, t o>:

    dS/dt = z U + (J V) o,    dS/do = (J V) t,    dS/da = J^T (U t) + d/da <J V, t o>.

Arithmetic is float32, float64 for float64. A holistic map (Ci = 1) broadcasts over channels; its gradient is their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import normalization as nz


def accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _to_map(d: Tensor, logits: Tensor) -> Tensor:
    return d.sum(1, keepdim=True) if logits.shape[1] == 1 else d


def weigh(t: Tensor, logits: Tensor, how: str, inside: Tensor) -> Tensor:
    """u = z t, (N, C, K, h, w)."""
    return nz.normalize(logits, how, inside) * t


def grad_logits(t: Tensor, o: Tensor, logits: Tensor, how: str, inside: Tensor) -> Tensor:
    """J^T (t o), the shape of logits."""
    return nz.normalize_vjp(logits, _to_map(t * o, logits), how, inside)


def double_backward(
    grad_u: Tensor, grad_grad_logits: Tensor, t: Tensor, o: Tensor, logits: Tensor, how: str, inside: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dS/dt, dS/do) of shape (N, C, K, h, w) and dS/da of the shape of logits."""
    z = nz.normalize(logits, how, inside)
    jv = nz.normalize_jvp(logits, grad_grad_logits, how, inside)
    first = nz.normalize_vjp(logits, _to_map(grad_u * t, logits), how, inside)
    second = nz.normalize_second(logits, grad_grad_logits, _to_map(t * o, logits), how, inside)
    return z * grad_u + jv * o, jv * t, first + second


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where ``x`` is (also as a view), contiguous otherwise; the rule of the C++ code."""
    if x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def like(out: Tensor, x: Tensor) -> Tensor:
    """``out`` in the dtype and memory format of the operator's input ``x``; never an alias of an input."""
    return torch.empty(out.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x)).copy_(out)


def like_logits(out: Tensor, logits: Tensor) -> Tensor:
    """``out`` in the dtype and strides of ``logits``."""
    return torch.empty_like(logits).copy_(out)
