# SPDX-License-Identifier: Apache-2.0
"""dynamic_downsample: schema, checks, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.dynamic_downsample import dynamic_downsample_window
from ..reference.normalization import NORMALIZATIONS
from ..reference.window import GROUP_LAYOUTS, Window
from ._common import autocast_inputs, check_choice, check_tensor, dispatch
from ._register import check_image
from ._window import check_groups, check_int, check_kernels, group_major, register_window_op, within

_OP = "dynamic_downsample"
KERNEL_SIZES = range(1, 15)
SCALES = (1, 2, 3, 4)


def check_downsample(op: str, x: Tensor, kernel_size: int, groups: int, scale: int, normalization: str) -> None:
    """Everything but the logits."""
    check_int(op, "kernel_size", kernel_size, KERNEL_SIZES[0], KERNEL_SIZES[-1])
    check_choice(op, "scale", scale, SCALES)
    check_choice(op, "normalization", normalization, NORMALIZATIONS)
    check_image(op, "x", x)
    check_groups(op, x, groups)


def check_grid(op: str, name: str, x: Tensor, kernels: Tensor, scale: int) -> None:
    """The size of the kernels' grid: no fewer cells than fit into x whole, no more than begin in it."""
    bounds = [(max(n // scale, 1), -(-n // scale)) for n in x.shape[2:]]
    within(op, f"the size of {name}", tuple(kernels.shape[2:]), bounds)


def _window(op: str, x: Tensor, logits: Tensor, kernel_size: int, groups: int, scale: int, normalization: str) -> Window:
    check_downsample(op, x, kernel_size, groups, scale, normalization)
    check_tensor(op, "logits", logits, ("N", "groups * k * k", "h", "w"))
    check_grid(op, "logits", x, logits, scale)
    check_kernels(op, "logits", x, logits, groups * kernel_size * kernel_size, *logits.shape[2:])
    return dynamic_downsample_window(x, logits, kernel_size, groups, scale, normalization)


register_window_op(_OP, ("logits",), "int kernel_size, int groups, int scale, str normalization", _window)


def dynamic_downsample(
    x: Tensor,
    logits: Tensor,
    *,
    kernel_size: int,
    groups: int = 1,
    scale: int = 2,
    normalization: str = "softmax",
    group_layout: str = "group_major",
    backend: str | None = None,
) -> Tensor:
    """Downsampling with a kernel of its own for every output pixel.

    y[n,c,i,j] = Σ_{ty,tx} z[n, g(c)·k² + ty·k + tx, i, j] · x[n, c, r·i - ⌊(k-1)/2⌋ + ty, r·j - ⌊(k-1)/2⌋ + tx], z = ``logits``
    normalised over the k² taps, pixels outside the image are 0 (z is not normalised again), g(c) = c // (C / groups).
    Source: [A2U] section 4, downsampling; CARAFE++.

    Args:
        x: features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        logits: raw kernels, (N, groups * k * k, h, w), h within floor(H / r)..ceil(H / r), w likewise; dtype and device of
            ``x``; any strides.
        kernel_size: k, 1 to 14.
        groups: sets of channels with kernels of their own; divides C.
        scale: r, 1 to 4.
        normalization: ``none``, ``sigmoid``, ``softmax`` (A2U as published, CARAFE++), ``sigmoid_softmax`` or
            ``softmax_sigmoid``.
        group_layout: ``group_major``; ``position_major`` is what the released A2U module does, see
            :func:`pyindexnet.dynamic_upsample`.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, h, w), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, logits; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x and logits; no normalised map is written. Deterministic: yes (no atomics).
    """
    x, logits = autocast_inputs(x, logits)
    check_choice(_OP, "group_layout", group_layout, GROUP_LAYOUTS)
    _window(_OP, x, logits, kernel_size, groups, scale, normalization)
    if group_layout == "position_major":
        logits, normalization = group_major(logits, groups, kernel_size, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, kernel_size, groups, scale, normalization)
