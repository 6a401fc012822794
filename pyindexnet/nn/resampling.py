# SPDX-License-Identifier: Apache-2.0
"""Pairs of down- and upsampling by 2 that an encoder-decoder puts at the two ends of one resolution step.

``reduce(x, keep)`` returns the map at half size, the map for the decoder to fuse (used where ``keep``) and a guide;
``restore(y, guide)`` brings a decoder map back to the size of ``x``. Any H and W: the half size is rounded up, and
``restore`` returns exactly the size that ``reduce`` saw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.nn.carafe import CARAFE
from pyindexnet.ops.indexed_pool import indexed_pool
from pyindexnet.ops.indexed_pool_skip import indexed_pool_skip
from pyindexnet.ops.indexed_upsample import indexed_upsample

Guide = tuple[Any, tuple[int, int]]
Reduced = tuple[Tensor, Tensor, Guide]


class Resampling(nn.Module, ABC):
    """The two ends of a resolution step; see the head of this module."""

    @abstractmethod
    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        """(N, C, H, W) -> map at half size (N, C, ceil(H/2), ceil(W/2)), map to fuse (N, C, H, W), guide."""

    @abstractmethod
    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        """(N, C, ceil(H/2), ceil(W/2)) -> (N, C, H, W)."""


class MaxUnpooling(Resampling):
    """Max pooling and max unpooling: the index function of [IndexNet] Eq. 1. The fused map is ``x`` itself."""

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        pooled, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        return pooled, x, (indices, _size(x))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        indices, size = guide
        return F.max_unpool2d(y, indices, [2, 2], output_size=size)


class BilinearUpsampling(Resampling):
    """Max pooling and bilinear interpolation (pixel centres aligned, not corners). The fused map is ``x`` itself."""

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        return F.max_pool2d(x, 2, ceil_mode=True), x, (None, _size(x))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        return F.interpolate(y, size=guide[1], mode="bilinear", align_corners=False)


class CarafeUpsampling(BilinearUpsampling):
    """:class:`BilinearUpsampling` with CARAFE, by the defaults of its paper, for interpolation ([Thesis] table 3.4).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.carafe = CARAFE(channels)

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        return self.carafe(y, guide[1])


class IndexedResampling(Resampling):
    """Indexed pooling and upsampling guided by one index network, [IndexNet] section 4.1.

    The fused map is the index-multiplied one, as in the published models.

    Args:
        network: (N, C, H, W) -> logits (N, C or 1, 4, h, w).
        encoder: normalisation of the logits for pooling, see :func:`pyindexnet.ops.indexed_pool`.
        decoder: the same for upsampling.
        keep_raw: fuse ``x`` itself in place of the index-multiplied map.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        encoder: str = "sigmoid_softmax",
        decoder: str = "sigmoid",
        keep_raw: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.encoder = encoder
        self.decoder = decoder
        self.keep_raw = keep_raw

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        logits = self.network(x)
        guide = (logits, _size(x))
        if keep and not self.keep_raw:
            pooled, skip = indexed_pool_skip(x, logits, normalization=self.encoder)
            return pooled, skip, guide
        return indexed_pool(x, logits, normalization=self.encoder), x, guide

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        logits, size = guide
        return indexed_upsample(y, logits, normalization=self.decoder, output_size=size)


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the height and width of ``like``: bilinear, corners aligned."""
    return F.interpolate(x, size=_size(like), mode="bilinear", align_corners=True)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]
