# SPDX-License-Identifier: Apache-2.0
"""Convolution with what follows it, for inference: batch norm in its weights, activation and residual in its last step.

On a CPU PyTorch offers this through oneDNN (``torch.ops.mkldnn``): an activation costs nothing where the sum of a convolution
is still in registers, and weights are kept in the order in which its kernels read them. Elsewhere, and where a graph is
captured (``torch.compile``, ``torch.export``, tracing), the same is written with PyTorch's own operators.

Kernels of 5 x 5 are convolved by minimal filtering, see :mod:`pyindexnet.ops.winograd`: direct convolution already runs at
the speed of the arithmetic, so that only fewer multiplications are faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pyindexnet import backends
from pyindexnet.nn.batch_norm import captured
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.nn.filtered_conv import filterable
from pyindexnet.ops import winograd
from pyindexnet.ops.winograd import transform_weight, winograd_convolution

_FEWEST_PIXELS = 256
_Attribute = tuple[str, list[float]]
#: Bounds of the output of an activation that does no more than bound its input.
_BOUNDS: dict[type[nn.Module], Callable[[Any], tuple[float, float]]] = {
    nn.Identity: lambda act: (-math.inf, math.inf),
    nn.ReLU: lambda act: (0.0, math.inf),
    nn.ReLU6: lambda act: (act.min_val, act.max_val),
}


class FusedConv(nn.Module):
    """act(conv(x) + residual), with a batch norm folded into the convolution.

    y = act(W' x + b' + residual), W' = W gamma / sigma, b' = beta + (b - mean) gamma / sigma with the running statistics.
    For inference: parameters need no gradient. The gradient of ``x`` is right; where it is needed, nothing is fused.

    Args:
        conv: with zero padding; its weights are copied.
        norm: follows it; None or an identity: nothing does. One that ends in a Leaky ReLU, as the in-place ABN of [A2U], tells
            so by ``negative_slope`` and its factor by ``gamma()``; a residual is then added after it.
        act: follows that, the module itself is used; None: linear.
    Shape: x (N, in_channels, H, W), residual as the output or None; the last of the input channels may come apart, as ``more``,
        which saves concatenating them -> (N, out_channels, H', W').
    Raises:
        ValueError: a norm that keeps no running statistics or has an activation before another, or a padding of other values
            than zeros.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"FusedConv: padding of conv must be a number of zeros, got {conv.padding} of {conv.padding_mode!r}"
            )
        with torch.inference_mode(False), torch.no_grad():  # ordinary tensors count their changes, see _prepared
            weight, bias = folded(conv, norm)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding = cast("tuple[int, int]", conv.stride), conv.padding
        self.dilation, self.groups = cast("tuple[int, int]", conv.dilation), conv.groups
        self.act = nn.Identity() if act is None else act
        slope = getattr(norm, "negative_slope", 1.0)
        self.residual_last = slope != 1
        if self.residual_last:
            if not isinstance(self.act, nn.Identity):
                raise ValueError(f"FusedConv: act must be None after a norm with an activation of its own, got {act}")
            self.act = nn.LeakyReLU(slope)
        self._filterable = filterable(conv) and type(self.act) in _BOUNDS
        self._kept: tuple[tuple[Any, ...], Any, list[Tensor]] | None = None

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, groups={self.groups}"

    def forward(self, x: Tensor, residual: Tensor | None = None, *, more: Tensor | None = None) -> Tensor:
        if residual is not None and self.residual_last:
            return self(x, more=more) + residual
        if residual is None and self._filters(x, more):
            low, high = _BOUNDS[type(self.act)](self.act)
            weight, bias = self._prepared("filtered", None, lambda: transform_weight(self.weight, self.bias))
            channels, size = self.weight.shape[0], self.weight.shape[2]
            return winograd_convolution(x, weight, bias, channels=channels, kernel_size=size, more=more, low=low, high=high)
        if more is not None:
            x = torch.cat((x, more), 1)
        attribute = _attribute(self.act)
        if attribute is None or not (_eager(x) and x.dtype == self.weight.dtype and _supports(x.dtype)):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return self.act(y if residual is None else y + residual)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        weight, (name, scalars) = self._packed(x), attribute
        if residual is not None and self.groups == 1:
            # after a sum oneDNN's binding knows the ReLU alone
            unary = name if name == "relu" else None
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, weight, self.bias, *geometry, "add", 1.0, unary, [], None
            )
            return y if unary or name == "none" else self.act(y)
        if residual is not None:
            name, scalars = "none", []
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *geometry, name, scalars, "")
        return y if residual is None else self.act(y + residual)

    def _filters(self, x: Tensor, more: Tensor | None) -> bool:
        """Whether to convolve by minimal filtering: docs/performance.md has the measurements behind it."""
        if not self._filterable or x.dtype != self.weight.dtype or not _eager(x) or backends.forced() not in (None, "cpu"):
            return False
        inputs = (x,) if more is None else (x, more)
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        return pixels >= _FEWEST_PIXELS and all(winograd.why_not(t, self.weight) is None for t in inputs)

    def _packed(self, x: Tensor) -> Tensor:
        """The weights in oneDNN's order for inputs of this shape."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        return self._prepared("packed", x.shape, lambda: reorder(self.weight, *geometry, list(x.shape)))

    def _prepared(self, form: str, shape: torch.Size | None, make: Callable[[], Any]) -> Any:
        """What ``make`` makes of the weights for inputs of this shape; the last one is kept until the weights change.

        What is written through ``weight.data`` is not counted as a change.
        """
        sources = [t for t in (self.weight, self.bias) if t is not None]
        if any(t.is_inference() for t in sources):  # these count no changes
            self._kept = None
            with torch.no_grad():
                return make()
        key = (form, shape, *((t.dtype, t.data_ptr(), t._version) for t in sources))
        kept = self._kept
        if kept is None or kept[0] != key:
            with torch.no_grad():
                # the sources too: as long as they live, nothing else has their address
                self._kept = kept = (key, make(), [t.detach() for t in sources])
        return kept[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedConv:
        with torch.inference_mode(False), torch.no_grad():  # converted in inference mode too, weights stay ordinary tensors
            super()._apply(fn, recurse)
            for name, parameter in list(self._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    self._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        self._kept = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # oneDNN's tensors cannot be copied


def folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution and the batch norm behind it, in one; the fold is made in float64.

    Raises:
        ValueError: the norm keeps no running statistics.
    """
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is None or isinstance(norm, nn.Identity):
        return weight.clone(), None if bias is None else bias.clone()
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or var is None:
        raise ValueError(f"FusedConv: norm must be a batch norm with running statistics, got {norm}")
    norm = cast(nn.BatchNorm2d, norm)
    factor: Any = getattr(norm, "gamma", None)
    gamma = norm.weight if factor is None else factor()
    scale = (var.double() + norm.eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.detach().double()
    shift = (-mean.double() if bias is None else bias.double() - mean.double()) * scale
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


def _eager(x: Tensor) -> bool:
    """Whether kernels without a derivative, which a compiler cannot fuse and which let NaN pass as 0, may take ``x``."""
    if captured() or isinstance(x, FakeTensor) or backends.forced() == "reference":
        return False
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return x.device.type == "cpu" and x.numel() > 0


def _supports(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves this dtype here."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()
