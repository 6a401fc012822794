# SPDX-License-Identifier: Apache-2.0
"""affinity_downsample: schema, checks, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.affinity_downsample import affinity_downsample_window
from ..reference.window import Window
from ._affinity import AFFINITY, check_affinity
from ._common import autocast_inputs, check_tensor, dispatch
from ._window import register_window_op
from .dynamic_downsample import check_downsample, check_grid

_OP = "affinity_downsample"


def _window(op: str, x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str) -> Window:
    check_downsample(op, x, kernel_size, groups, scale, normalization)
    check_tensor(op, "a", a, ("N", "d", "h", "w"))
    check_grid(op, "a", x, a, scale)
    check_affinity(op, x, a, p, groups * kernel_size * kernel_size, *a.shape[2:])
    return affinity_downsample_window(x, a, p, kernel_size, groups, scale, normalization)


register_window_op(_OP, ("a", "p"), "int kernel_size, int groups, int scale, str normalization", _window, AFFINITY)


def affinity_downsample(
    x: Tensor,
    a: Tensor,
    p: Tensor,
    *,
    kernel_size: int,
    groups: int = 1,
    scale: int = 2,
    normalization: str = "softmax",
    backend: str | None = None,
) -> Tensor:
    """Downsampling with kernels that are generated from an affinity map where they are used.

    :func:`pyindexnet.dynamic_downsample` with logits[n,ch,i,j] = Σ_e p[n,e,ch] · a[n,e,i,j], e = 1..d, ch = g k² + t, which are
    never written: a cell's kernels of groups · k² weights are computed from its d numbers.
    Source: [A2U] section 4, downsampling; [Thesis] chapter 4.

    Args:
        x: features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        a: affinity map of rank d, (N, d, h, w), h within floor(H / r)..ceil(H / r), w likewise, d 1 to 16; dtype and device of
            ``x``; any strides.
        p: generator, (N, d, groups * k * k), or (1, d, ...) for all samples; dtype and device of ``x``; any strides.
        kernel_size: k, 1 to 14.
        groups: sets of channels with kernels of their own; divides C.
        scale: r, 1 to 4.
        normalization: of a kernel over its taps: ``none``, ``sigmoid``, ``softmax`` (A2U as published), ``sigmoid_softmax`` or
            ``softmax_sigmoid``.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, h, w), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, a, p; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x, a and p; no map of logits or kernels is written, forward or backward. Deterministic: yes (no atomics).
    """
    x, a, p = autocast_inputs(x, a, p)
    _window(_OP, x, a, p, kernel_size, groups, scale, normalization)
    return dispatch(_OP, backend, (x, a, p))(x, a, p, kernel_size, groups, scale, normalization)
