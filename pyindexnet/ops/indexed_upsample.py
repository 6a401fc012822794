# SPDX-License-Identifier: Apache-2.0
"""indexed_upsample: registration, public function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.indexed_upsample import (
    indexed_upsample_backward_reference,
    indexed_upsample_double_backward_reference,
    indexed_upsample_reference,
)
from ._common import autocast_inputs, check_output_size, dispatch
from ._indexed import check_logits, check_options
from ._register import Sizes, check_image, register_operator

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
    height, width = check_output_size(op, output_size)
    if -(-height // ratio) != h or -(-width // ratio) != w:
        raise ValueError(
            f"{op}: output_size must be within ({ratio * (h - 1) + 1}..{ratio * h}, {ratio * (w - 1) + 1}..{ratio * w}), "
            f"got ({height}, {width})"
        )
    check_logits(op, x, logits, ratio, h, w)
    return height, width


def _sizes(op: str, x: Tensor, logits: Tensor, ratio: int, normalization: str, height: int, width: int) -> Sizes:
    return ((*x.shape[:2], *_check(op, x, logits, ratio, normalization, (height, width))),)


def _backward_sizes(op: str, grad: Tensor, x: Tensor, logits: Tensor, ratio: int, normalization: str) -> Sizes:
    check_image(op, "grad", grad)
    return _sizes(op, x, logits, ratio, normalization, *grad.shape[2:])


register_operator(
    _OP,
    tensors=("x", "logits"),
    options="int ratio, str normalization",
    forward_options="SymInt height, SymInt width",
    sizes=_sizes,
    backward_sizes=_backward_sizes,
    reference=indexed_upsample_reference,
    backward_reference=indexed_upsample_backward_reference,
    double_backward_reference=indexed_upsample_double_backward_reference,
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
    x, logits = autocast_inputs(x, logits)
    height, width = _check(_OP, x, logits, ratio, normalization, output_size)
    return dispatch(_OP, backend, (x, logits))(x, logits, ratio, normalization, height, width)
