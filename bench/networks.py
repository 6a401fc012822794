# SPDX-License-Identifier: Apache-2.0
"""The networks that ``python -m bench models`` times, and each in its published formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.a2u_matting import BasicBlock
from pyindexnet.nn import GLF, TMP, AffinityUpDown
from pyindexnet.nn.affinity import SLOPE
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.nn.index_networks import POSITIONS, DepthwiseIndexNetwork
from pyindexnet.nn.resampling import Guide, IndexedResampling, Reduced, Resampling

from .ops import dynamic_downsample, dynamic_upsample
from .ops.encoding import encode

FORWARD, TRAINING = "forward", "training step"


class PublishedIndexBlock(nn.Module):
    """The four columns of a many-to-one index network, one convolution stack each, as [IndexNet] figure 6 draws them.

    Takes the weights of a :class:`DepthwiseIndexNetwork`. Returns the shuffled full-size maps for pooling and upsampling.
    """

    def __init__(self, network: DepthwiseIndexNetwork) -> None:
        super().__init__()
        if network.family != "m2o" or network.hidden is None:
            raise ValueError(f"PublishedIndexBlock: network must be nonlinear m2o, got {network}")
        self.columns = nn.ModuleList(self._column(network, k) for k in range(POSITIONS))

    @staticmethod
    def _column(network: DepthwiseIndexNetwork, position: int) -> nn.Sequential:
        first, last = cast(ConvBNAct, network.hidden), network.predict
        hidden = first.conv.out_channels // POSITIONS
        conv = first.conv
        unit = ConvBNAct(conv.in_channels, hidden, conv.kernel_size[0], stride=2, padding=conv.padding[0])
        predict = nn.Conv2d(hidden, last.out_channels // POSITIONS, 1, bias=False)
        for merged, own in ((first, unit), (last, predict)):
            own.to(last.weight)  # dtype and device; before the weights are copied, so that none is rounded
            state = merged.state_dict()
            own.load_state_dict({k: network.split(t)[position] if t.dim() else t for k, t in state.items()})
        return nn.Sequential(unit, predict)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.stack([column(x) for column in self.columns], 2)
        weights = logits.sigmoid()
        return F.pixel_shuffle(weights.softmax(2).flatten(1, 2), 2), F.pixel_shuffle(weights.flatten(1, 2), 2)


class PublishedResampling(Resampling):
    """Indexed pooling and upsampling with the published formulas: full-size maps, average pooling, interpolation."""

    def __init__(self, resampling: IndexedResampling) -> None:
        super().__init__()
        self.block = PublishedIndexBlock(cast(DepthwiseIndexNetwork, resampling.network))

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        encoder, decoder = self.block(x)
        skip = encoder * x
        return 4 * F.avg_pool2d(skip, 2), skip, (decoder, (x.shape[2], x.shape[3]))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        return guide[0] * F.interpolate(y, scale_factor=2, mode="nearest")


def published_indexnet(model: nn.Module) -> nn.Module:
    """A copy of an IndexNet Matting network, with its weights, that computes as the published code does."""
    model = copy.deepcopy(model)
    resampling = cast(nn.ModuleDict, model.resampling)
    for name, module in resampling.items():
        resampling[name] = PublishedResampling(cast(IndexedResampling, module))
    return model


class UnfoldedGLF(nn.Module):
    """A GLF whose fusion unfolds X and multiplies, as a network without an operator of its own must write [TMFNet] Eq. 6."""

    def __init__(self, glf: GLF) -> None:
        super().__init__()
        self.glf = glf

    def forward(self, high: Tensor, low: Tensor, context: Tensor | None = None) -> Tensor:
        glf = self.glf
        x = glf.distributed(high, low)
        n, c, h, w = x.shape
        k, groups = glf.kernel_size, glf.groups
        windows = F.unfold(x, k, padding=k // 2)
        kernels = glf.kernels(x, context)
        if glf.group_order == "blocked":
            y = (windows.view(n, groups, c // groups, k * k, h, w) * kernels.view(n, groups, 1, k * k, h, w)).sum(3)
        else:
            y = (windows.view(n, c // groups, groups, k * k, h, w) * kernels.view(n, 1, groups, k * k, h, w)).sum(3)
        return glf.merge(y.view(n, c, h, w))


class PooledTMP(nn.Module):
    """A TMP whose windows are average poolings, one branch after the other: [TMFNet] Eq. 3 as it is written."""

    def __init__(self, tmp: TMP) -> None:
        super().__init__()
        self.tmp = tmp

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def pool(t: Tensor, k: int) -> Tensor:
            return F.avg_pool2d(t, k, 1, k // 2, count_include_pad=False)

        sizes = self.tmp.kernel_sizes
        parts = zip(self.tmp.branches(x).chunk(len(sizes), 1), sizes, strict=True)
        return torch.cat([x, *(pool(part * mask, k) / (pool(mask, k) + 1e-6) for part, k in parts)], 1)


def published_tmfnet(model: nn.Module) -> nn.Module:
    """A copy of a TMFNet, with its weights, in plain formulas."""
    model = copy.deepcopy(model)
    model.context = PooledTMP(cast(TMP, model.context))
    stages = cast(nn.ModuleList, model.stages)
    for i, stage in enumerate(stages):
        stages[i] = UnfoldedGLF(cast(GLF, stage))
    return model


class PublishedAffinity(Resampling):
    """A pair of affinity-aware down- and upsampling with the kernels of every pixel written out, one sample after the other.

    Takes the weights of a dynamic, normalised :class:`AffinityUpDown` of rank 1.
    """

    def __init__(self, affinity: AffinityUpDown) -> None:
        super().__init__()
        if affinity.encode is None or affinity.norm_weight is None or affinity.encodings != 1:
            raise ValueError(f"PublishedAffinity: affinity must be dynamic, normalised and of rank 1, got {affinity}")
        self.affinity = affinity

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the up- and the downsampling kernels of one sample."""
        own = self.affinity
        size, c = own.encoder_kernel_size, own.channels
        encoders = cast(nn.Conv2d, own.encode)(F.adaptive_avg_pool2d(x, size)).view(2, 1, own.encoded, 1, size, size)
        encodings = []
        for kernel, weight, bias in zip(
            encoders, *(cast(Tensor, t).chunk(2) for t in (own.norm_weight, own.norm_bias)), strict=True
        ):
            encodings.append(F.leaky_relu(F.group_norm(encode(x, kernel)[:, :, 0], own.norm_groups, weight, bias), SLOPE))
        a = (encodings[0] * encodings[1]).sum(1, keepdim=True) / c**0.5
        generators = cast(nn.Conv2d, own.generate)(F.adaptive_avg_pool2d(x, 1)).view(-1, 1, 1, 1)
        up, down = F.conv2d(a, generators).split(own.generators, 1)
        return up, down

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        up, down = (torch.cat(logits) for logits in zip(*(self._logits(sample) for sample in x.split(1)), strict=True))
        k = self.affinity.down_kernel_size
        return dynamic_downsample.published(x, down, kernel_size=k, groups=1, scale=2), x, (up, (x.shape[2], x.shape[3]))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        weights, k = guide[0].sigmoid(), self.affinity.kernel_size
        return dynamic_upsample.published(y, weights, kernel_size=k, groups=1, scale=2, layout="shuffled")


def published_a2u(model: nn.Module) -> nn.Module:
    """A copy of an A2U Matting network, with its weights, in plain formulas."""
    model = copy.deepcopy(model)
    pairs = cast(nn.ModuleList, model.resampling)
    for i, pair in enumerate(pairs):
        pairs[i] = PublishedAffinity(cast(AffinityUpDown, pair))
    for block in model.modules():
        if isinstance(block, BasicBlock) and block.resampling is not None:
            block.register_module("resampling", PublishedAffinity(block.resampling))
    return model


def _noise(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size)


def _one_hot(size: tuple[int, ...]) -> Tensor:
    """Noise, and a trimap: background at the left, foreground at the right, unknown between."""
    n, _, height, width = size
    level = (torch.arange(width) * 3 // width).expand(n, height, width)
    return torch.cat([torch.randn(n, 3, height, width), F.one_hot(level, 3).movedim(3, 1).float()], 1)


@dataclass(frozen=True)
class Network:
    """What is compared.

    Attributes:
        options: of ``create_model``.
        published: a copy of the model in the published formulas.
        picture: input of a size.
        cases: (mode, input size) by device.
        quick: the same, for ``--quick``.
        gamma: of batch norms; a fresh residual network outgrows float16 in evaluation mode.
    """

    options: dict[str, Any]
    published: Callable[[nn.Module], nn.Module]
    picture: Callable[[tuple[int, ...]], Tensor]
    cases: dict[str, tuple[tuple[str, tuple[int, ...]], ...]]
    quick: tuple[tuple[str, tuple[int, ...]], ...]
    channels: int
    gamma: float = 1.0


NETWORKS = {
    "indexnet_matting": Network(
        {"index_network": "m2o", "nonlinear": True, "context": True, "index_width": 1},  # the released one
        published_indexnet,
        _noise,
        {
            device: ((FORWARD, (1, 4, 320, 320)), (FORWARD, (1, 4, 512, 512)), (TRAINING, (batch, 4, 320, 320)))
            for device, batch in (("cpu", 2), ("cuda", 8))
        },
        ((FORWARD, (1, 4, 320, 320)),),
        4,
    ),
    "a2u_matting": Network(
        {"encoder_kernel_size": 6},  # the released one
        published_a2u,
        _noise,
        {
            device: ((FORWARD, (1, 4, 512, 512)), (TRAINING, (batch, 4, 256, 256)))
            for device, batch in (("cpu", 2), ("cuda", 8))
        },
        ((FORWARD, (1, 4, 256, 256)),),
        4,
    ),
    "tmfnet": Network(
        {},
        published_tmfnet,
        _one_hot,
        {
            device: ((FORWARD, (1, 6, 512, 512)), (FORWARD, (1, 6, 1024, 1024)), (TRAINING, (batch, 6, 256, 256)))
            for device, batch in (("cpu", 2), ("cuda", 8))
        },
        ((FORWARD, (1, 6, 512, 512)),),
        6,
        gamma=0.5,
    ),
}
