# SPDX-License-Identifier: Apache-2.0
"""Batch norm with an activation, for training on the CPU, in the fewest readings of a map.

    y = act(gamma (x - mean) / sigma + beta),  act(z) = min(z > 0 ? z : slope z, high)

Forward, a map is read for its statistics, read and written: 3 units of its size. Backward, x and grad are read for two sums of
each channel, read again and the gradient written: 5. PyTorch's operators take 6 and 8, an activation of their own included.
The activation's mask follows from x, so that y need not be kept: what :mod:`pyindexnet.nn.batch_norm` builds on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _extension
from ._common import FLOATS, absent_kernel
from ._register import empty_image

_OPTIONS = "Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, float eps, float slope, float high"
for _name, _schema in (
    ("batch_norm_statistics", "(Tensor x) -> (Tensor, Tensor)"),
    ("batch_norm_activation", f"({_OPTIONS}) -> Tensor"),
    ("batch_norm_activation_backward", f"(Tensor grad, {_OPTIONS}, bool batch) -> (Tensor, Tensor, Tensor)"),
):
    torch.library.define(f"pyindexnet::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
_absent = absent_kernel("batch_norm_statistics", "cpu")


@torch.library.register_fake("pyindexnet::batch_norm_statistics")
def _fake_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return _of_channel(x), _of_channel(x)


@torch.library.register_fake("pyindexnet::batch_norm_activation")
def _fake_activation(x: Tensor, *arguments: object) -> Tensor:
    return empty_image(x, x.shape)


@torch.library.register_fake("pyindexnet::batch_norm_activation_backward")
def _fake_backward(grad: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    return empty_image(x, x.shape), _of_channel(x), _of_channel(x)


def _of_channel(x: Tensor) -> Tensor:
    return torch.empty(x.shape[1], dtype=statistics_dtype(x), device=x.device)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Of sums and parameters of the channels of ``x``: float32, float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def why_not(x: Tensor) -> str | None:
    """None where the kernels take ``x`` (N, C, H, W), else the reason why they do not."""
    if _extension.MODULE is None:
        return _extension.REASON
    if _absent is not None:
        return _absent()
    if x.device.type != "cpu" or x.dtype not in FLOATS:
        return f"it takes floating maps on the CPU, not {x.dtype} on {x.device}"
    if x.dim() != 4 or x.numel() == 0:
        return f"it takes maps of four dimensions that are not empty, not {tuple(x.shape)}"
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        return "it takes contiguous and channels_last maps"
    return None


def batch_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel.

    Args:
        x: (N, C, H, W), floating, on the CPU, contiguous or channels_last; see :func:`why_not`.
    Returns:
        (C,) and (C,), float32, float64 for float64. Deviations from a mean are squared: nothing cancels where it is large.
    Raises:
        RuntimeError: shape, dtype or layout.
    Gradients: none. Deterministic: yes, whatever the number of threads.
    """
    return torch.ops.pyindexnet.batch_norm_statistics(x)


def batch_norm_activation(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float, high: float
) -> Tensor:
    """act(weight (x - mean) / sqrt(var + eps) + bias), see the head of this module.

    Args:
        x: as of :func:`batch_norm_statistics`.
        mean, var, weight, bias: (C,), float32, float64 for float64.
        eps: added to the variance.
        slope: of the activation below 0: 0: ReLU, 1: none (``high`` is then not looked at).
        high: its upper bound where ``slope`` is 0, above 0.
    Returns:
        (N, C, H, W), dtype and memory format of ``x``.
    Raises:
        RuntimeError: shape, dtype or layout.
    Gradients: none, see :func:`batch_norm_activation_backward`. Deterministic: yes.
    """
    return torch.ops.pyindexnet.batch_norm_activation(x, mean, var, weight, bias, eps, slope, high)


def batch_norm_activation_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    slope: float,
    high: float,
    batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias for ``grad``, that of :func:`batch_norm_activation`.

    d = act'(z) grad, xhat = (x - mean) / sigma, grad_bias = Σ d, grad_weight = Σ d xhat,
    grad_x = weight / sigma (d - (grad_bias + xhat grad_weight) / count); without the last term where ``mean`` and ``var`` are
    not those of ``x`` (``batch=False``).

    Args:
        grad: shape and dtype of ``x``; copied into the layout of ``x`` where it has neither that nor a slice's of it.
        x, mean, var, weight, bias, eps, slope, high: as of the forward.
    Returns:
        (N, C, H, W) as ``x``; (C,) and (C,) as ``weight``.
    Raises:
        RuntimeError: shape, dtype or layout.
    Gradients: none. Deterministic: yes, whatever the number of threads.
    """
    if not _follows(grad, x):
        grad = torch.empty_like(x).copy_(grad)
    return torch.ops.pyindexnet.batch_norm_activation_backward(grad, x, mean, var, weight, bias, eps, slope, high, batch)


def _follows(grad: Tensor, x: Tensor) -> bool:
    """Whether ``grad`` has the strides of ``x``, or those of a slice of channels of a larger map in its layout."""
    (n, c, h, w), size = grad.stride(), x.shape
    if grad.stride() == x.stride():
        return True
    if x.is_contiguous():
        return min(size) > 1 and (h, w) == (size[3], 1) and c == size[2] * size[3]
    return min(size) > 1 and c == 1 and (n, h) == (size[2] * size[3] * w, size[3] * w) and w >= size[1]
