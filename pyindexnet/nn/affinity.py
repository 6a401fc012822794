# SPDX-License-Identifier: Apache-2.0
"""Affinity-aware up- and downsampling, [A2U] section 4, [Thesis] section 4.4.

A guide feature gives each of its low-resolution cells an affinity a of rank d ([A2U] Eq. 4: two strided encodings U and V,
their product summed over channels), and a generator P turns that into the logits of the cell's kernels,
logits[ch, i, j] = sum_r P[r, ch] a[r, i, j]. The operators apply P where the kernels are used; kernels are never written.

=============  ===========================================  ==============================================
               U and V                                      P
=============  ===========================================  ==============================================
``static``     parameters                                   parameters
``hybrid``     parameters                                   1x1 convolution of the mean of the guide
``dynamic``    1x1 convolution of the guide, averaged over  1x1 convolution of the mean of the guide
               ke x ke cells
=============  ===========================================  ==============================================

All of a batch is one call, though each sample has kernels of its own. The sum over channels is divided by sqrt(C), as in the
released code: P, which multiplies it, can hold any other factor.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pyindexnet.nn.arguments import require_count, require_map, require_one_of
from pyindexnet.nn.map_statistics import cell_means, encoding_moments
from pyindexnet.nn.resampling import Guide, Reduced, Resampling
from pyindexnet.ops._common import without_autocast
from pyindexnet.ops.affinity_downsample import affinity_downsample
from pyindexnet.ops.affinity_map import affinity_map
from pyindexnet.ops.affinity_upsample import affinity_upsample
from pyindexnet.ops.dynamic_downsample import dynamic_downsample
from pyindexnet.ops.dynamic_upsample import dynamic_upsample
from pyindexnet.reference import NORMALIZATIONS
from pyindexnet.reference.window import GROUP_LAYOUTS

VARIANTS = ("static", "hybrid", "dynamic")
UP_KERNEL_SIZES = (1, 3, 5, 7)
ENCODER_KERNEL_SIZES = range(1, 15)
SCALE = 2
MAX_RANK = 16
SLOPE = 0.01
EPS = 1e-5


class AffinityKernels(NamedTuple):
    """Kernels in factors.

    Attributes:
        a: affinity, (N, d, h, w); d times 4 where position-wise.
        up: generator of the upsampling kernels, (N or 1, channels of a, groups * k * k * 4).
        down: that of the downsampling kernels, (N or 1, channels of a, groups * 2k * 2k); None where there are none.
    """

    a: Tensor
    up: Tensor
    down: Tensor | None


class AffinityUpsample(nn.Module):
    """Affinity-aware upsampling by 2, its kernels made from a high-resolution guide.

    Args:
        channels: C of the guide.
        variant: ``"static"``, ``"hybrid"`` or ``"dynamic"``, see the head of this module.
        shared: U and V are the same for all channels ("cs"), else each channel has its own ("cw").
        position_wise: each of the four pixels of a cell has a U and a V, and all share P ("pw"); else U and V are shared and
            each has a P.
        normalize: group norm and Leaky ReLU (0.01) on both encodings (the dagger of [Thesis] table 4.2).
        rank: d; at most 16, 4 where position-wise.
        kernel_size: k, side of the kernels: 1, 3, 5 or 7.
        encoder_kernel_size: ke, side of U and V, 1 to 14.
        groups: sets of the channels of x with kernels of their own.
        normalization: of a kernel over its taps; ``"sigmoid_softmax"`` is ``"sigmoid"`` where k = 1. [Thesis] table 4.4.
        norm_groups: of the group norm; divides C.
        group_layout: ``"position_major"``: of the released code, see :func:`pyindexnet.dynamic_upsample`; matters with several
            groups only, and writes the kernels.
    Shape: x (N, C', h, w), guide (N, C, H, W), h = ceil(H / 2), w = ceil(W / 2) -> (N, C', H, W).
    Raises:
        ValueError: a value that is not allowed, another number of channels, or another dtype than the weights'.
        TypeError: x or guide is not a tensor.
    """

    paired = False

    def __init__(
        self,
        channels: int,
        *,
        variant: str = "dynamic",
        shared: bool = True,
        position_wise: bool = False,
        normalize: bool = False,
        rank: int = 1,
        kernel_size: int = 3,
        encoder_kernel_size: int = 5,
        groups: int = 1,
        normalization: str = "sigmoid_softmax",
        norm_groups: int = 32,
        group_layout: str = "group_major",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_one_of(name, "variant", variant, VARIANTS)
        require_one_of(name, "kernel_size", kernel_size, UP_KERNEL_SIZES)
        require_one_of(name, "encoder_kernel_size", encoder_kernel_size, ENCODER_KERNEL_SIZES)
        require_one_of(name, "normalization", normalization, NORMALIZATIONS)
        require_one_of(name, "group_layout", group_layout, GROUP_LAYOUTS)
        for option, flag in (("shared", shared), ("position_wise", position_wise), ("normalize", normalize)):
            require_one_of(name, option, flag, (False, True))
        for option, value in (("channels", channels), ("groups", groups), ("norm_groups", norm_groups)):
            require_count(name, option, value)
        if normalize and channels % norm_groups:
            raise ValueError(f"{name}: channels must be a multiple of norm_groups ({norm_groups}), got {channels}")
        positions = SCALE**2 if position_wise else 1
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK // positions:
            raise ValueError(f"{name}: rank must be a whole number from 1 to {MAX_RANK // positions}, got {rank!r}")
        self.channels = channels
        self.variant = variant
        self.position_wise = position_wise
        self.rank = rank
        self.encodings = rank * positions
        self.kernel_size = kernel_size
        self.down_kernel_size = SCALE * kernel_size
        self.encoder_kernel_size = encoder_kernel_size
        self.groups = groups
        # a softmax over one tap would be 1 whatever its logit
        self.normalization = "sigmoid" if kernel_size == 1 and normalization == "sigmoid_softmax" else normalization
        self.norm_groups = norm_groups
        self.group_layout = group_layout

        self.encoded = 1 if shared else channels
        encoders = 2 * self.encoded * self.encodings
        self.encode = self.encoders = None
        if variant == "dynamic":
            self.encode = nn.Conv2d(channels, encoders, 1)
        else:
            self.encoders = nn.Parameter(torch.empty(encoders, encoder_kernel_size, encoder_kernel_size))
        # position-wise encodings share the taps of one generator
        self.generators = [rank * groups * kernel_size**2 * (1 if position_wise else SCALE**2)]
        if self.paired:
            self.generators.append(self.encodings * groups * self.down_kernel_size**2)
        self.generate = self.generator = None
        if variant == "static":
            self.generator = nn.Parameter(torch.empty(sum(self.generators)))
        else:
            self.generate = nn.Conv2d(channels, sum(self.generators), 1)
        self.norm_weight = self.norm_bias = None
        if normalize:  # of U, then of V
            self.norm_weight = nn.Parameter(torch.ones(2 * channels * self.encodings))
            self.norm_bias = nn.Parameter(torch.zeros(2 * channels * self.encodings))
        self.init_kernels()

    def init_kernels(self) -> None:
        """Start from encodings and logits as large as the guide."""
        for conv in (self.encode, self.generate):
            if conv is not None:
                nn.init.xavier_normal_(conv.weight)
                nn.init.zeros_(cast(Tensor, conv.bias))
        if self.encoders is not None:
            nn.init.normal_(self.encoders, 0.0, 1 / self.encoder_kernel_size)
        if self.generator is not None:
            nn.init.normal_(self.generator, 0.0, self.encodings**-0.5)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        self._require_map("x", x, None)
        return self.upsampled(x, self.kernels(guide), (guide.shape[2], guide.shape[3]))

    def _require_map(self, name: str, x: Tensor, channels: int | None) -> None:
        weight = self.generator if self.generate is None else self.generate.weight
        require_map(type(self).__name__, name, x, channels, cast(Tensor, weight))

    def kernels(self, guide: Tensor) -> AffinityKernels:
        """The factors of the kernels that a guide (N, C, H, W) gives; h = ceil(H / 2), w = ceil(W / 2)."""
        self._require_map("guide", guide, self.channels)
        size = self.encoder_kernel_size if self.encode is not None else 0
        means = None if self.variant == "static" else cell_means(guide, size)
        if self.encode is not None:
            encoders = self.encode(cast(Tensor, means)[:, :, :size, :size])
        else:
            encoders = cast(Tensor, self.encoders).unsqueeze(0)
        u, v = encoders.unflatten(1, (2, self.encoded, self.encodings)).unbind(1)
        a = affinity_map(
            guide,
            u,
            v,
            stride=SCALE,
            scale=self.channels**-0.5,
            affine=self._affine(guide, u, v),
            negative_slope=SLOPE,
        )
        if self.generate is not None:
            generators = self.generate(cast(Tensor, means)[:, :, size:, size:]).flatten(1)
        else:
            generators = cast(Tensor, self.generator).unsqueeze(0)
        up, *down = generators.split(self.generators, 1)
        up = up.unflatten(1, (self.rank, -1))
        if self.position_wise:
            up = _each_position(up)
        return AffinityKernels(a, up, down[0].unflatten(1, (self.encodings, -1)) if down else None)

    def _affine(self, guide: Tensor, u: Tensor, v: Tensor) -> Tensor | None:
        """Group norm of both encodings as factors and shifts, (N, C, d, 2, 2)."""
        if self.norm_weight is None:
            return None
        # Of half types in float32: a variance soon exceeds float16, and a rounded mean does not center.
        wide = (t if t.dtype == torch.float64 else t.float() for t in (guide, u, v))
        with without_autocast(guide):
            moments = encoding_moments(*wide, groups=self.norm_groups, stride=SCALE)
        mean, var = moments.unbind(-1)  # (N, groups, d, 2)
        members = self.channels // self.norm_groups
        mean, rsigma = (t.repeat_interleave(members, 1) for t in (mean, (var + EPS).rsqrt()))
        weight, bias = (
            cast(Tensor, t).view(2, self.channels, self.encodings).permute(1, 2, 0) for t in (self.norm_weight, self.norm_bias)
        )
        factor = weight * rsigma
        return torch.stack((factor, bias - mean * factor), -1).to(guide.dtype)

    def upsampled(self, x: Tensor, kernels: AffinityKernels, output_size: tuple[int, int]) -> Tensor:
        """(N, C', h, w) -> (N, C', H, W)."""
        if self._materialised():
            return dynamic_upsample(
                x,
                _logits(kernels.a, kernels.up),
                kernel_size=self.kernel_size,
                groups=self.groups,
                normalization=self.normalization,
                output_size=output_size,
                group_layout=self.group_layout,
            )
        return affinity_upsample(
            x,
            kernels.a,
            kernels.up,
            kernel_size=self.kernel_size,
            groups=self.groups,
            normalization=self.normalization,
            output_size=output_size,
        )

    def _materialised(self) -> bool:
        """The released layout of several groups normalises other taps than it applies: it needs the map."""
        return self.groups > 1 and self.group_layout == "position_major"


class AffinityUpDown(AffinityUpsample, Resampling):
    """Affinity-aware downsampling by 2 and the upsampling that is its pair ("d" in [Thesis] table 4.2).

    Both are made from the map that is downsampled, with the same U and V and a P of their own; the downsampling kernels have
    side 2k and are normalised by a softmax. The fused map of :meth:`reduce` is that map itself.

    Args:
        channels and the others: see :class:`AffinityUpsample`.
    Shape: see :mod:`pyindexnet.nn.resampling`.
    """

    paired = True

    def downsampled(self, x: Tensor, kernels: AffinityKernels) -> Tensor:
        """(N, C', H, W) -> (N, C', h, w)."""
        down = cast(Tensor, kernels.down)
        if self._materialised():
            return dynamic_downsample(
                x,
                _logits(kernels.a, down),
                kernel_size=self.down_kernel_size,
                groups=self.groups,
                group_layout=self.group_layout,
            )
        return affinity_downsample(x, kernels.a, down, kernel_size=self.down_kernel_size, groups=self.groups)

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        kernels = self.kernels(x)
        return self.downsampled(x, kernels), x, (kernels, (x.shape[2], x.shape[3]))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        return self.upsampled(y, *guide)


def _logits(a: Tensor, p: Tensor) -> Tensor:
    """(N, d, h, w), (N or 1, d, channels) -> (N, channels, h, w)."""
    return torch.matmul(p.transpose(1, 2), a.flatten(2)).unflatten(2, a.shape[2:])


def _each_position(p: Tensor) -> Tensor:
    """A generator of taps, (N, d, T), as one of 4 d encodings for all 4 positions, (N, 4 d, 4 T): each is its own alone."""
    n, d, taps = p.shape
    own = torch.eye(SCALE**2, dtype=p.dtype, device=p.device)
    return (p[:, :, None, :, None] * own[:, None, :]).reshape(n, d * SCALE**2, taps * SCALE**2)
