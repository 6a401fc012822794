# SPDX-License-Identifier: Apache-2.0
"""affinity_upsample: schema, checks, public function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.affinity_upsample import affinity_upsample_window
from ..reference.window import Window
from ._affinity import AFFINITY, check_affinity
from ._common import autocast_inputs, check_choice, check_output_size, dispatch
from ._register import check_image
from ._window import register_window_op
from .dynamic_upsample import SCALES, check_upsample

_OP = "affinity_upsample"


def _window(
    op: str,
    x: Tensor,
    a: Tensor,
    p: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    height: int,
    width: int,
) -> Window:
    check_upsample(op, x, kernel_size, groups, scale, normalization, height, width)
    channels = groups * kernel_size * kernel_size * scale * scale
    check_affinity(op, x, a, p, channels, -(-height // scale), -(-width // scale))
    return affinity_upsample_window(x, a, p, kernel_size, groups, scale, normalization, height, width)


register_window_op(
    _OP,
    ("a", "p"),
    "int kernel_size, int groups, int scale, str normalization, SymInt height, SymInt width",
    _window,
    AFFINITY,
)


def affinity_upsample(
    x: Tensor,
    a: Tensor,
    p: Tensor,
    *,
    kernel_size: int,
    groups: int = 1,
    scale: int = 2,
    normalization: str = "sigmoid_softmax",
    output_size: Sequence[int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Upsampling with kernels that are generated from an affinity map where they are used.

    :func:`pyindexnet.dynamic_upsample` with logits[n,ch,i,j] = Σ_e p[n,e,ch] · a[n,e,i,j], e = 1..d, ch = (g k² + t) r² + dy r
    + dx, which are never written: a cell's kernels of groups · k² · r² weights are computed from its d numbers.
    Source: [A2U] section 3; [Thesis] chapter 4.

    Args:
        x: features, (N, C, h, w); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        a: affinity map of rank d, (N, d, ceil(H / r), ceil(W / r)), d 1 to 16; dtype and device of ``x``; any strides.
        p: generator, (N, d, groups * k * k * r * r), or (1, d, ...) for all samples; dtype and device of ``x``; any strides.
        kernel_size: k, one of 1, 3, 5, 7.
        groups: sets of channels with kernels of their own; divides C.
        scale: r, 1 to 4.
        normalization: of a kernel over its taps: ``none``, ``sigmoid`` (A2U with k = 1), ``softmax``, ``sigmoid_softmax``
            (A2U) or ``softmax_sigmoid``.
        output_size: (H, W) with floor(H / r) <= h <= ceil(H / r), W likewise; None: (r h, r w).
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, H, W), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, a, p; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x, a and p; no map of logits or kernels is written, forward or backward. Deterministic: yes (no atomics).
    """
    x, a, p = autocast_inputs(x, a, p)
    check_choice(_OP, "scale", scale, SCALES)
    check_image(_OP, "x", x)
    size = (x.shape[2] * scale, x.shape[3] * scale) if output_size is None else output_size
    height, width = check_output_size(_OP, size)
    _window(_OP, x, a, p, kernel_size, groups, scale, normalization, height, width)
    return dispatch(_OP, backend, (x, a, p))(x, a, p, kernel_size, groups, scale, normalization, height, width)
