# SPDX-License-Identifier: Apache-2.0
"""indexed_pool_skip: registration, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.indexed_pool_skip import (
    indexed_pool_skip_backward_reference,
    indexed_pool_skip_double_backward_reference,
    indexed_pool_skip_reference,
)
from ._common import autocast_inputs, dispatch
from ._indexed import pooled_sizes
from ._register import Sizes, register_operator

_OP = "indexed_pool_skip"


def _sizes(op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Sizes:
    return *pooled_sizes(op, x, logits, ratio, normalization), tuple(x.shape)


register_operator(
    _OP,
    tensors=("x", "logits"),
    options="int ratio, str normalization",
    grads=("grad_pooled", "grad_skip"),
    sizes=_sizes,
    reference=indexed_pool_skip_reference,
    backward_reference=indexed_pool_skip_backward_reference,
    double_backward_reference=indexed_pool_skip_double_backward_reference,
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
    x, logits = autocast_inputs(x, logits)
    pooled_sizes(_OP, x, logits, ratio, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization)
