# SPDX-License-Identifier: Apache-2.0
"""dynamic_upsample: schema, checks, public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..reference.dynamic_upsample import dynamic_upsample_window
from ..reference.normalization import NORMALIZATIONS
from ..reference.window import GROUP_LAYOUTS, LAYOUTS, Window
from ._common import autocast_inputs, check_choice, check_output_size, check_tensor, dispatch
from ._register import check_image
from ._window import check_groups, check_kernels, group_major, register_window_op, within

_OP = "dynamic_upsample"
KERNEL_SIZES = (1, 3, 5, 7)
SCALES = (1, 2, 3, 4)


def check_upsampled_size(op: str, x: Tensor, scale: int, output_size: Any) -> tuple[Any, Any]:
    """(H, W) with floor(H / scale) <= h <= ceil(H / scale), W likewise."""
    height, width = check_output_size(op, output_size)
    within(op, "output_size", (height, width), [(scale * (n - 1) + 1, scale * (n + 1) - 1) for n in x.shape[2:]])
    return height, width


def check_upsample(
    op: str, x: Tensor, kernel_size: int, groups: int, scale: int, normalization: str, height: int, width: int
) -> None:
    """Everything but the logits."""
    check_choice(op, "kernel_size", kernel_size, KERNEL_SIZES)
    check_choice(op, "scale", scale, SCALES)
    check_choice(op, "normalization", normalization, NORMALIZATIONS)
    check_image(op, "x", x)
    check_groups(op, x, groups)
    check_upsampled_size(op, x, scale, (height, width))


def _window(
    op: str,
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    dense: bool,
    height: int,
    width: int,
) -> Window:
    check_upsample(op, x, kernel_size, groups, scale, normalization, height, width)
    taps = groups * kernel_size * kernel_size
    if dense:
        check_kernels(op, "logits", x, logits, taps, height, width)
    else:
        check_kernels(op, "logits", x, logits, taps * scale * scale, -(-height // scale), -(-width // scale))
    return dynamic_upsample_window(x, logits, kernel_size, groups, scale, normalization, dense, height, width)


register_window_op(
    _OP,
    ("logits",),
    "int kernel_size, int groups, int scale, str normalization, bool dense, SymInt height, SymInt width",
    _window,
)


def dynamic_upsample(
    x: Tensor,
    logits: Tensor,
    *,
    kernel_size: int,
    groups: int = 1,
    scale: int = 2,
    normalization: str = "softmax",
    layout: str = "shuffled",
    output_size: Sequence[int] | None = None,
    group_layout: str = "group_major",
    backend: str | None = None,
) -> Tensor:
    """Upsampling with a kernel of its own for every output pixel.

    y[n,c,p,q] = Σ_{ty,tx} z[n, g(c)·k² + ty·k + tx, p, q] · x[n, c, p//r + ty-(k-1)/2, q//r + tx-(k-1)/2], z = ``logits``
    normalised over the k² taps, pixels outside the image are 0 (z is not normalised again), g(c) = c // (C / groups).
    Source: [A2U] Eq. 1; CARAFE.

    Args:
        x: features, (N, C, h, w); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        logits: raw kernels, dtype and device of ``x``, any strides. ``layout="shuffled"``: (N, groups * k * k * r * r,
            ceil(H / r), ceil(W / r)), channel (g k² + t) r² + dy r + dx, what a pixel shuffle turns into the other layout.
            ``layout="dense"``: (N, groups * k * k, H, W).
        kernel_size: k, one of 1, 3, 5, 7.
        groups: sets of channels with kernels of their own; divides C.
        scale: r, 1 to 4.
        normalization: ``none``, ``sigmoid``, ``softmax`` (CARAFE), ``sigmoid_softmax`` (A2U) or ``softmax_sigmoid``.
        layout: ``shuffled`` or ``dense``.
        output_size: (H, W) with floor(H / r) <= h <= ceil(H / r), W likewise; None: (r h, r w), or the size of dense logits.
        group_layout: ``group_major``: channel as above. ``position_major``: the released A2U module, which lays channels out
            and normalises them as (tap, group) while its operator reads (group, tap), so that with several groups the sum of a
            kernel is not 1; kept for its checkpoints. Writes the normalised map.
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
    check_choice(_OP, "layout", layout, LAYOUTS)
    check_choice(_OP, "group_layout", group_layout, GROUP_LAYOUTS)
    check_choice(_OP, "scale", scale, SCALES)
    check_image(_OP, "x", x)
    check_tensor(_OP, "logits", logits, ("N", "channels", "h", "w"))
    if output_size is None:
        output_size = logits.shape[2:] if layout == "dense" else (x.shape[2] * scale, x.shape[3] * scale)
    height, width = check_output_size(_OP, output_size)
    dense = layout == "dense"
    _window(_OP, x, logits, kernel_size, groups, scale, normalization, dense, height, width)
    if group_layout == "position_major":
        logits, normalization = group_major(logits, groups, kernel_size, normalization)
    return dispatch(_OP, backend, (x, logits))(x, logits, kernel_size, groups, scale, normalization, dense, height, width)
