# SPDX-License-Identifier: Apache-2.0
"""Convolution with what follows it, for inference: batch norm in its weights, activation and residual in its last step.

On a CPU PyTorch offers this through oneDNN (``torch.ops.mkldnn``): an activation costs nothing where the sum of a convolution
is still in registers, and weights are kept in the order in which its kernels read them. Elsewhere, and where a graph is
captured (``torch.compile``, ``torch.export``, tracing), the same is written with PyTorch's own operators.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.conv import ConvBNAct

_Attribute = tuple[str, list[float]]
_Packed = tuple[tuple[Any, ...], Tensor]


class FusedConv(nn.Module):
    """act(conv(x) + residual), with a batch norm folded into the convolution.

    y = act(W' x + b' + residual), W' = W gamma / sigma, b' = beta + (b - mean) gamma / sigma with the running statistics.
    For inference: parameters need no gradient. The gradient of ``x`` is right; where it is needed, nothing is fused.

    Args:
        conv: with zero padding; its weights are copied.
        norm: follows it; None or an identity: nothing does.
        act: follows that, the module itself is used; None: linear.
    Shape: x (N, in_channels, H, W), residual as the output or None -> (N, out_channels, H', W').
    Raises:
        ValueError: a norm that keeps no running statistics, or a padding of other values than zeros.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"FusedConv: padding of conv must be a number of zeros, got {conv.padding} of {conv.padding_mode!r}"
            )
        weight, bias = folded(conv, norm)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding = cast("tuple[int, int]", conv.stride), conv.padding
        self.dilation, self.groups = cast("tuple[int, int]", conv.dilation), conv.groups
        self.act = nn.Identity() if act is None else act
        self._packed: _Packed | None = None

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, groups={self.groups}"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        attribute = _attribute(self.act)
        if attribute is None or not self._packs(x):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return self.act(y if residual is None else y + residual)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        weight, (name, scalars) = self._weight(x), attribute
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *geometry, name, scalars, "")
        # after a sum oneDNN's binding knows the ReLU alone
        unary = name if name == "relu" else None
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, self.bias, *geometry, "add", 1.0, unary, [], None
        )
        return y if unary or name == "none" else self.act(y)

    def _packs(self, x: Tensor) -> bool:
        """Whether oneDNN's fused convolution takes ``x``."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or (torch.is_grad_enabled() and x.requires_grad):
            return False
        if x.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
            return False
        return x.numel() > 0 and x.dtype == self.weight.dtype and _supports(x.dtype)

    def _weight(self, x: Tensor) -> Tensor:
        """The weights in oneDNN's order for inputs of this shape; the last ones are kept."""
        weight = self.weight
        key = (x.shape, weight.dtype, weight.data_ptr(), weight._version)
        packed = self._packed
        if packed is None or packed[0] != key:
            with torch.no_grad():
                order = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, self.padding, self.stride, self.dilation, self.groups, list(x.shape)
                )
            self._packed = packed = (key, order)
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # oneDNN's tensors cannot be copied


def folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution and the batch norm behind it, in one; the fold is made in float64.

    Raises:
        ValueError: the norm keeps no running statistics.
    """
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is None or isinstance(norm, nn.Identity):
        return weight.clone(), None if bias is None else bias.clone()
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"FusedConv: norm must be a batch norm with running statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


def fold_unit(unit: ConvBNAct) -> None:
    """Fold the batch norm of ``unit`` into its convolution, in place; the unit stays."""
    weight, bias = folded(unit.conv, unit.bn)
    unit.conv.weight = nn.Parameter(weight, requires_grad=False)
    unit.conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    unit.bn = nn.Identity()


def _attribute(act: nn.Module) -> _Attribute | None:
    """Name and numbers of an activation in oneDNN's binding; None where it has none."""
    if isinstance(act, nn.Identity):
        return "none", []
    if isinstance(act, nn.Hardtanh):  # of which ReLU6 is one
        return "hardtanh", [act.min_val, act.max_val]
    if isinstance(act, nn.LeakyReLU):
        return "leaky_relu", [act.negative_slope]
    return ("relu", []) if isinstance(act, nn.ReLU) else None


def _supports(dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
