# SPDX-License-Identifier: Apache-2.0
"""indexed_pool: registration, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.indexed_pool import (
    indexed_pool_backward_reference,
    indexed_pool_double_backward_reference,
    indexed_pool_reference,
)
from ._common import autocast_inputs, dispatch
from ._indexed import pooled_sizes
from ._register import register_operator

_OP = "indexed_pool"


register_operator(
    _OP,
    tensors=("x", "logits"),
    options="int ratio, str normalization",
    sizes=pooled_sizes,
    reference=indexed_pool_reference,
    backward_reference=indexed_pool_backward_reference,
    double_backward_reference=indexed_pool_double_backward_reference,
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
    x, logits = autocast_inputs(x, logits)
    pooled_sizes(_OP, x, logits, ratio, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization)
