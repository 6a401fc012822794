# SPDX-License-Identifier: Apache-2.0
"""grouped_spatial_fusion: schema, checks, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.grouped_spatial_fusion import grouped_spatial_fusion_window
from ..reference.window import GROUP_ORDERS, Window
from ._common import autocast_inputs, check_choice, dispatch
from ._register import check_image
from ._window import check_groups, check_kernels, register_window_op

_OP = "grouped_spatial_fusion"
KERNEL_SIZES = (1, 3, 5, 7)


def _window(op: str, x: Tensor, kernels: Tensor, kernel_size: int, groups: int, group_order: str) -> Window:
    check_choice(op, "kernel_size", kernel_size, KERNEL_SIZES)
    check_choice(op, "group_order", group_order, GROUP_ORDERS)
    check_image(op, "x", x)
    check_groups(op, x, groups)
    check_kernels(op, "kernels", x, kernels, groups * kernel_size * kernel_size, *x.shape[2:])
    return grouped_spatial_fusion_window(x, kernels, kernel_size, groups, group_order)


register_window_op(_OP, ("kernels",), "int kernel_size, int groups, str group_order", _window)


def grouped_spatial_fusion(
    x: Tensor,
    kernels: Tensor,
    *,
    groups: int,
    kernel_size: int = 3,
    group_order: str = "blocked",
    backend: str | None = None,
) -> Tensor:
    """Convolves every pixel of ``x`` with kernels of its own, one for each group of channels.

    y[n,c,i,j] = Σ_{ty,tx} K[n, g(c)·k² + ty·k + tx, i, j] · x[n, c, i+ty-(k-1)/2, j+tx-(k-1)/2], pixels outside the image are
    0, the kernels are used as they are (no normalisation). Source: [TMFNet] Eq. 6. Involution is the same operator.

    Args:
        x: features, (N, C, H, W); float64, float32, float16, bfloat16; contiguous, channels_last or any strides.
        kernels: (N, groups * k * k, H, W), group-major, rows of a kernel next; dtype and device of ``x``; any strides.
        groups: number of groups; divides C.
        kernel_size: k, one of 1, 3, 5, 7.
        group_order: ``blocked``: channel c belongs to group c // (C / groups), as in the released code; ``interleaved``: to
            group c % groups, as [TMFNet] Eq. 6 writes it (X viewed as H x W x C/N x N). Each is the other on permuted channels;
            the default is the one whose groups lie together in memory, in channels_last several times as fast.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, H, W), dtype of ``x``; channels_last where ``x`` is, else contiguous.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, kernels; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves x and kernels; no unfolded map is written. Deterministic: yes (no atomics).
    """
    x, kernels = autocast_inputs(x, kernels)
    _window(_OP, x, kernels, kernel_size, groups, group_order)
    return dispatch(_OP, backend, (x, kernels))(x, kernels, kernel_size, groups, group_order)
