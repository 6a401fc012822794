# SPDX-License-Identifier: Apache-2.0
"""Index networks: from a feature map to the raw logits of its index map, [IndexNet] sections 4.2 and 4.3.

Every network maps (N, C, H, W) to logits (N, Ci, 4, h, w), h = ceil(H/2), w = ceil(W/2), position k = 2*dy + dx inside the
2x2 cell: what ``indexed_pool`` and ``indexed_upsample`` take. They normalise the logits themselves; nothing is normalised or
shuffled here. The activation is ReLU6, as in the published models (the paper writes ReLU); no convolution has a bias.

=======================  ====  ==============================================  ===============================
family                   Ci    weights are shared by                           [Thesis] section
=======================  ====  ==============================================  ===============================
``hin``                  1     (one map for all channels)                      3.4.2, holistic
``o2o_modelwise``        C     all channels of all stages                      3.4.3.1, modelwise
``o2o_stagewise``        C     all channels of one stage                       3.4.3.1, shared stagewise
``o2o``                  C     nothing: each channel has its own               3.4.3.1, unshared stagewise
``m2o``                  C     nothing: each position sees all channels        3.4.3.2, many to one
``hmi``                  1     (no weights)                                    3.6.1, holistic max index
=======================  ====  ==============================================  ===============================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.arguments import require_count, require_one_of
from pyindexnet.nn.conv import ConvBNAct, init_weights

POSITIONS = 4
DEPTHWISE_FAMILIES = ("o2o_modelwise", "o2o_stagewise", "o2o", "m2o")
WIDTHS = (1, 2)


class HolisticIndexNetwork(nn.Module):
    """One index map for all channels, [IndexNet] section 4.2.

    Linear: one convolution C -> 4, stride 2. Nonlinear: convolution C -> 2C, stride 2, batch norm, ReLU6, then 1x1 -> 4.

    Args:
        channels: C.
        nonlinear: whether the hidden layer is there.
        context: weak context: a 4x4 first kernel in place of 2x2.
    Raises:
        ValueError: a value that is not allowed.
    Shape: (N, C, H, W) -> (N, 1, 4, ceil(H/2), ceil(W/2)); odd sizes are padded with zeros at the bottom and right.
    """

    def __init__(self, channels: int, *, nonlinear: bool = True, context: bool = True) -> None:
        super().__init__()
        require_count("HolisticIndexNetwork", "channels", channels)
        self.hidden, self.predict = _layers(channels, 2 * channels, POSITIONS, nonlinear, context)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_to_even(x)
        if self.hidden is not None:
            x = self.hidden(x)
        return self.predict(x).unsqueeze(1)


class DepthwiseIndexNetwork(nn.Module):
    """An index map of the size of the features, [IndexNet] section 4.3, [Thesis] section 3.4.3.

    The papers draw four columns, one for each position of the cell. Here the four are one convolution, one batch norm and,
    where nonlinear, one grouped 1x1 convolution: the same function and the same gradients, and the input is read once.
    The order of the merged channels is position-major for ``m2o`` and channel-major for the other families, whose grouped
    convolutions need it; :meth:`merge` and :meth:`split` convert. ``m2o`` returns a transposed view.

    Args:
        channels: C; the two families with shared weights take features of any width and do not use it.
        family: ``"o2o_modelwise"``, ``"o2o_stagewise"``, ``"o2o"`` or ``"m2o"``. The first two are the same network; the
            caller shares the one module between stages for the first.
        nonlinear: whether the hidden layer is there.
        context: weak context: a 4x4 first kernel in place of 2x2.
        width: hidden channels of each column over C: 2 as in the papers, 1 as in the released code.
    Shape: (N, C, H, W) -> (N, C, 4, ceil(H/2), ceil(W/2)); odd sizes are padded with zeros at the bottom and right.
    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        channels: int,
        family: str = "m2o",
        *,
        nonlinear: bool = True,
        context: bool = True,
        width: int = 2,
    ) -> None:
        super().__init__()
        require_count("DepthwiseIndexNetwork", "channels", channels)
        require_one_of("DepthwiseIndexNetwork", "family", family, DEPTHWISE_FAMILIES)
        require_one_of("DepthwiseIndexNetwork", "width", width, WIDTHS)
        self.family = family
        self.shared = family in ("o2o_modelwise", "o2o_stagewise")
        self.position_major = family == "m2o"
        # a network shared by all channels is that of a single channel, applied to each
        self.channels = channels = 1 if self.shared else channels
        self.hidden, self.predict = _layers(
            channels,
            POSITIONS * width * channels,
            POSITIONS * channels,
            nonlinear,
            context,
            groups=1 if self.position_major else channels,
            predict_groups=POSITIONS if self.position_major else POSITIONS * channels,
        )
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_to_even(x)
        if self.shared:
            return self._forward_slices(x)
        if self.hidden is not None:
            x = self.hidden(x)
        logits = self.predict(x)
        if self.position_major:
            return logits.unflatten(1, (POSITIONS, -1)).transpose(1, 2)
        return logits.unflatten(1, (-1, POSITIONS))

    def _forward_slices(self, x: Tensor) -> Tensor:
        """The single-channel network on every channel, as depthwise convolutions with repeated weights.

        Measured against folding channels into the batch, (N*C, 1, H, W): up to five times faster forward on a CPU, and no
        copy where ``x`` is channels_last.
        """
        c = x.shape[1]
        if self.hidden is not None:
            x = _repeated_conv(self.hidden.conv, x, c)
            x = self.hidden.act(_repeated_batch_norm(self.hidden.bn, x, c))
        return _repeated_conv(self.predict, x, c).unflatten(1, (c, POSITIONS))

    def merge(self, columns: Sequence[Tensor]) -> Tensor:
        """One parameter of the four columns, (out, ...) each, in the order of the merged parameter, (4*out, ...)."""
        if self.position_major:
            return torch.cat(list(columns))
        stacked = torch.stack([t.unflatten(0, (self.channels, -1)) for t in columns], dim=1)
        return stacked.flatten(0, 2)

    def split(self, merged: Tensor) -> tuple[Tensor, ...]:
        """Inverse of :meth:`merge`: a merged parameter, or its gradient, as those of the four columns."""
        if self.position_major:
            return merged.chunk(POSITIONS)
        stacked = merged.unflatten(0, (self.channels, POSITIONS, -1))
        return tuple(t.flatten(0, 1) for t in stacked.unbind(1))

    def extra_repr(self) -> str:
        return f"family={self.family}"


class HolisticMaxIndex(nn.Module):
    """Holistic max index (HMI), [IndexNet] section 5.2: max-pooling indices of the maximum over channels.

    Returns the index map itself, 1 at the first largest position of a cell and 0 elsewhere, to be used with
    ``normalization="none"``. It has no parameters and passes no gradient.

    Shape: (N, C, H, W) -> (N, 1, 4, ceil(H/2), ceil(W/2)), dtype of the input.
    """

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        squeezed = _pad_to_even(x.amax(1, keepdim=True), value=-torch.inf)
        positions = F.pixel_unshuffle(squeezed, 2)
        index = positions.argmax(1, keepdim=True)
        one_hot = index == torch.arange(POSITIONS, device=x.device).view(1, POSITIONS, 1, 1)
        return one_hot.to(x.dtype).unsqueeze(1)


def _layers(
    channels: int,
    hidden: int,
    out: int,
    nonlinear: bool,
    context: bool,
    *,
    groups: int = 1,
    predict_groups: int = 1,
) -> tuple[ConvBNAct | None, nn.Conv2d]:
    """Hidden layer, None where linear, and the layer that gives the logits."""
    kernel, padding = (4, 1) if context else (2, 0)
    if not nonlinear:
        return None, nn.Conv2d(channels, out, kernel, 2, padding, groups=groups, bias=False)
    first = ConvBNAct(channels, hidden, kernel, stride=2, padding=padding, groups=groups)
    return first, nn.Conv2d(hidden, out, 1, groups=predict_groups, bias=False)


def _pad_to_even(x: Tensor, value: float = 0.0) -> Tensor:
    bottom, right = x.shape[2] % 2, x.shape[3] % 2
    return F.pad(x, (0, right, 0, bottom), value=value) if bottom or right else x


def _repeated_conv(conv: nn.Conv2d, x: Tensor, times: int) -> Tensor:
    """``conv`` on each of ``times`` groups of channels of ``x``."""
    weight = conv.weight.repeat(times, 1, 1, 1)
    bias = None if conv.bias is None else conv.bias.repeat(times)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups * times)


def _repeated_batch_norm(bn: nn.Module, x: Tensor, times: int) -> Tensor:
    """``bn`` on each of ``times`` groups of channels of ``x``; its batch statistics are taken over all of them."""
    if not isinstance(bn, nn.BatchNorm2d):
        return x  # folded into the convolution
    if bn.training:
        folded = x.reshape(x.shape[0] * times, -1, *x.shape[2:])
        return bn(folded).reshape(x.shape)
    mean, var, weight, bias = (
        None if t is None else t.repeat(times) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return F.batch_norm(x, mean, var, weight, bias, eps=bn.eps)
