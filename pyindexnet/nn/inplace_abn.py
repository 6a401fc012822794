# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation in place: "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs", Rota Bulo et al.,
CVPR 2018. [A2U] has one after every convolution.

A convolution, batch norm and Leaky ReLU keep two maps for the backward pass, the input of the norm and that of the next
convolution; here the output takes the memory of the input and is the only one kept:

    forward   z = gamma (x - mean) / sigma + beta,  y = leaky(z), written over x
    backward  z = leaky^-1(y),  xhat = (z - beta) / gamma,  d = leaky'(z) grad_y,
              grad_beta = sum d,  grad_gamma = sum d xhat,
              grad_x = gamma / sigma (d - (grad_beta + xhat grad_gamma) / count), in evaluation mode gamma / sigma d

Leaky ReLU and the identity have an exact inverse. ELU does not: it saturates at -1, and what is close to that cannot be told
apart, so it is not offered.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.arguments import require_count, require_number, require_one_of
from pyindexnet.nn.batch_norm import HALF, batch_statistics, count_batch, track_statistics
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.ops._common import check_floating
from pyindexnet.ops.batch_norm import statistics_dtype

WEIGHTS = ("raw", "positive")


class InPlaceABN(nn.Module):
    """Batch norm, then Leaky ReLU or nothing, written over the input.

    Takes the place of ``nn.BatchNorm2d`` and ``nn.LeakyReLU`` with the same parameters and buffers. The layer before must not
    need its output for its own backward pass: convolutions do not; where one does, autograd raises.

    Args:
        channels: C.
        negative_slope: of the Leaky ReLU, above 0; 1: no activation.
        eps: added to the variance, and to a positive weight.
        momentum: of the running statistics; None: their plain average.
        weight_form: ``"raw"``: gamma is the weight, which should stay away from 0, where xhat cannot be recovered;
            ``"positive"``: gamma = abs(weight) + eps, as in every published version.
        sync: statistics of the whole batch over all processes, as ``nn.SyncBatchNorm``; for training under
            ``torch.distributed``, else without effect.
        process_group: the processes that share a batch; None: all.
    Shape: (N, C, ...) -> the same, the same memory; floating. A view is copied first: what it is a view of stays as it is.
    Raises:
        ValueError: a value that is not allowed, another number of channels, or one value per channel in training.
        TypeError: x is not a tensor.
    Gradients: x, weight, bias; differentiable any number of times, except with ``sync``, where the second raises
        NotImplementedError. Under ``torch.compile`` and ``torch.export`` the same function runs out of place: what to keep is
        then the compiler's choice; with ``sync`` it raises.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        weight_form: str = "raw",
        sync: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        require_count("InPlaceABN", "channels", channels)
        require_one_of("InPlaceABN", "weight_form", weight_form, WEIGHTS)
        require_one_of("InPlaceABN", "sync", sync, (False, True))
        require_number("InPlaceABN", "negative_slope", negative_slope, low=0, open=True)
        require_number("InPlaceABN", "eps", eps, low=0)
        if momentum is not None:
            require_number("InPlaceABN", "momentum", momentum)
        self.channels = channels
        self.negative_slope = negative_slope
        self.eps = eps
        self.momentum = momentum
        self.weight_form = weight_form
        self.sync = sync
        self.process_group = process_group
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def extra_repr(self) -> str:
        return f"{self.channels}, negative_slope={self.negative_slope}, weight_form={self.weight_form!r}, sync={self.sync}"

    def gamma(self) -> Tensor:
        """The factor of the normalised map, (C,)."""
        return self._gamma(self.weight)

    def _gamma(self, weight: Tensor) -> Tensor:
        return weight.abs() + self.eps if self.weight_form == "positive" else weight

    def forward(self, x: Tensor) -> Tensor:
        check_floating("InPlaceABN", "x", x)
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"InPlaceABN: x must be (N, {self.channels}, ...), got {tuple(x.shape)}")
        group = self._group()
        if torch.compiler.is_compiling():
            return self._out_of_place(x, group)
        if x._is_view():
            x = x.clone()  # autograd has no views written in place by a function of two outputs
        if self.training:
            mean, var, count = self._statistics(x, group)
        else:
            mean, var, count = self.running_mean, self.running_var, 0
        # What a half map is multiplied by is float32, as its statistics are; autograd casts the gradients back.
        weight, bias, mean, var = (t.to(statistics_dtype(x)) for t in (self.weight, self.bias, mean, var))
        return _Function.apply(x, self._gamma(weight), bias, mean, var, self.eps, self.negative_slope, count, group)[0]

    def _group(self) -> Any:
        """The process group to synchronise with, if any."""
        if not (self.sync and self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @torch.no_grad()
    def _statistics(self, x: Tensor, group: Any) -> tuple[Tensor, Tensor, int]:
        """Mean, biased variance and number of values for each channel, of all processes; the running ones follow."""
        count = x.numel() // self.channels
        if count:
            mean, var = batch_statistics(x)
        else:  # the other processes wait for this one all the same
            mean = var = x.new_zeros(self.channels, dtype=statistics_dtype(x))
        if group is not None:
            mean, var, count = _joined(mean, var, count, group)
        if count < 2:
            raise ValueError(f"InPlaceABN: x must hold more than one value per channel in training, got {tuple(x.shape)}")
        track_statistics(self, mean, var, count)
        return mean, var, count

    def _out_of_place(self, x: Tensor, group: Any) -> Tensor:
        if group is not None:
            raise NotImplementedError("InPlaceABN: sync must be False under torch.compile, got True")
        factor = count_batch(self) if self.training else 0.0
        y = F.batch_norm(x, self.running_mean, self.running_var, self.gamma(), self.bias, self.training, factor, self.eps)
        return y if self.negative_slope == 1 else F.leaky_relu(y, self.negative_slope)


class _Function(torch.autograd.Function):
    """(y, 1 / sigma); the second is an output so that derivatives of the backward pass reach x through it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        slope: float,
        count: int,
        group: Any,
    ) -> tuple[Tensor, Tensor]:
        rsigma = (var + eps).rsqrt()
        scale = gamma * rsigma
        shift = beta - mean * scale
        if x.dtype in HALF:
            x.copy_(torch.addcmul(_channels(shift, x), x, _channels(scale, x)))  # one rounding instead of two
        else:
            x.mul_(_channels(scale, x)).add_(_channels(shift, x))
        if slope != 1:
            F.leaky_relu_(x, slope)
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gamma, beta, rsigma)
        ctx.slope, ctx.count, ctx.group = slope, count, group
        return x, rsigma

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_rsigma: Tensor | None) -> tuple[Tensor | None, ...]:
        y, gamma, beta, rsigma = ctx.saved_tensors
        again = torch.is_grad_enabled()  # this pass is to be differentiated itself
        if again and ctx.group is not None:
            raise NotImplementedError("InPlaceABN: sync must be False for derivatives of the backward pass, got True")
        grad_x = grad_gamma = grad_beta = None
        z, d = y, grad_y
        if ctx.slope != 1:
            z = F.leaky_relu(y, 1 / ctx.slope)
            d = None if grad_y is None else torch.where(y < 0, grad_y * ctx.slope, grad_y)
        one_pass = grad_rsigma is None and not again and ctx.group is None
        if d is not None and d.numel() and one_pass:  # PyTorch's own divides by the number of samples
            grads = _one_pass(d, z, gamma, beta, rsigma, ctx.count > 0)
            return (*grads, *(None,) * 6)
        xhat = (z - _channels(beta, y)) / _channels(gamma, y)
        rest = [i for i in range(y.dim()) if i != 1]
        if d is not None:
            grad_beta, grad_gamma = d.sum(rest), (d * xhat).sum(rest)
            grad_x = d
            if ctx.count:
                sums = torch.stack((grad_beta, grad_gamma))
                if ctx.group is not None:
                    dist.all_reduce(sums, group=ctx.group)
                means = sums / ctx.count
                grad_x = d - _channels(means[0], y) - xhat * _channels(means[1], y)
            grad_x = grad_x * _channels(gamma * rsigma, y)
        if grad_rsigma is not None and ctx.count:  # d(1/sigma)/dx = -xhat / (sigma^2 count)
            through = -xhat * _channels(grad_rsigma * rsigma.square() / ctx.count, y)
            grad_x = through if grad_x is None else grad_x + through
        return grad_x, grad_gamma, grad_beta, *(None,) * 6


def _one_pass(d: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, rsigma: Tensor, batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x, grad_gamma, grad_beta by PyTorch's own backward of batch norm, where z has mean beta and deviation abs(gamma).

    What it normalises is then xhat times the sign of gamma, and it multiplies grad_x by weight / deviation.
    """
    deviation = gamma.abs()
    grad_x, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
        d,
        z,
        gamma * deviation * rsigma,
        beta,
        deviation.square(),
        beta,
        deviation.reciprocal(),
        batch,
        0.0,
        [True] * 3,
    )
    return grad_x, grad_gamma * gamma.sign(), grad_beta


def _joined(mean: Tensor, var: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, int]:
    """Mean, biased variance and count of the values of all processes, from those of each."""
    own = torch.cat((mean, var, mean.new_tensor([count])))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    means, variances, counts = torch.stack(parts).split((len(mean), len(mean), 1), 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, var, int(total)


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """(C,) broadcast against x."""
    return values.view(-1, *(1,) * (x.dim() - 2))


def convert_inplace_abn(
    model: nn.Module,
    *,
    weight_form: str = "raw",
    sync: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Give every convolution unit with Leaky ReLU or no activation an :class:`InPlaceABN`, with its weights; returns ``model``.

    State-dict keys stay, and with ``weight_form="raw"`` the function that the model computes does, but for units with Leaky
    ReLU that are called with a residual: their activation moves before the sum. No model of this package calls them so.

    Args:
        model: changed; its :class:`~pyindexnet.nn.conv.ConvBNAct` modules with another activation stay as they are.
        weight_form, sync, process_group: see :class:`InPlaceABN`.
    """
    for unit in model.modules():
        if not isinstance(unit, ConvBNAct) or not isinstance(unit.bn, nn.BatchNorm2d):
            continue
        bn, act = unit.bn, unit.act
        if not isinstance(act, (nn.LeakyReLU, nn.Identity)):
            continue
        abn = InPlaceABN(
            bn.num_features,
            negative_slope=act.negative_slope if isinstance(act, nn.LeakyReLU) else 1.0,
            eps=bn.eps,
            momentum=bn.momentum,
            weight_form=weight_form,
            sync=sync,
            process_group=process_group,
        )
        _replace(unit, abn, nn.Identity())
    return model


def revert_inplace_abn(model: nn.Module) -> nn.Module:
    """Inverse of :func:`convert_inplace_abn`, for what knows batch norms alone; the function that the model computes stays.

    But for units with Leaky ReLU that are called with a residual: their activation moves behind the sum. A batch norm's weight
    is the gamma of the module that it replaces. Returns ``model``, changed.
    """
    for unit in model.modules():
        if isinstance(unit, ConvBNAct) and isinstance(unit.bn, InPlaceABN):
            abn: InPlaceABN = unit.bn
            gamma = abn.gamma().detach()
            act = nn.Identity() if abn.negative_slope == 1 else nn.LeakyReLU(abn.negative_slope)
            _replace(unit, nn.BatchNorm2d(abn.channels, abn.eps, abn.momentum), act)
            with torch.no_grad():
                unit.bn.weight.copy_(gamma)
    return model


def _replace(unit: ConvBNAct, norm: nn.Module, act: nn.Module) -> None:
    """Exchange norm and activation; values of parameters and buffers are taken over, and which need gradients."""
    old = unit.bn
    norm.to(cast(Tensor, old.weight))
    norm.load_state_dict(old.state_dict())
    for name, parameter in norm.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    unit.register_module("bn", norm.train(old.training))
    unit.act = act
