# SPDX-License-Identifier: Apache-2.0
"""Input tensors of a sample in a dtype, on a device, in a layout."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .specs import OpSpec, Sample

#: Layouts of (images, index maps). ``channels_last`` and ``position_major`` maps are what merged convolutions give out.
LAYOUTS = ("contiguous", "channels_last", "position_major", "strided", "expanded")


def _permuted(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values, stored with ``order`` as the order of dimensions in memory."""
    inverse = [order.index(d) for d in range(t.dim())]
    return t.permute(order).contiguous().permute(inverse)


def _layout(t: Tensor, layout: str) -> Tensor:
    is_map = t.dim() == 5
    if layout == "channels_last":
        if t.dim() < 4:
            return t
        return _permuted(t, (0, 3, 4, 2, 1) if is_map else (0, 2, 3, 1))
    if layout == "position_major":
        return _permuted(t, (0, 2, 1, 3, 4)) if is_map else t
    if layout == "strided":  # no unit stride anywhere
        t = _permuted(t, (*range(t.dim() - 2), t.dim() - 1, t.dim() - 2))
        wide = torch.full((*t.shape[:-2], 2 * t.shape[-2], t.shape[-1]), torch.nan, dtype=t.dtype, device=t.device)
        wide = wide.transpose(-1, -2).contiguous().transpose(-1, -2)
        wide[..., ::2, :] = t
        return wide[..., ::2, :]
    if layout == "expanded":
        return t[:1, :1].expand(t.shape) if t.shape[0] else t
    return t


def make_tensors(
    spec: OpSpec, sample: Sample, dtype: torch.dtype, device: str | torch.device = "cpu", layout: str = "contiguous"
) -> tuple[Tensor, ...]:
    """Inputs of ``spec`` for ``sample``: reproducible, rounded to ``dtype``, without gradient."""
    rng = torch.Generator().manual_seed(zlib.crc32(f"{spec.name}|{sample.id}".encode()))
    out = []
    for name, shape in zip(spec.tensors, sample.shapes, strict=True):
        t = torch.randn(shape, generator=rng, dtype=torch.float64) * sample.scales.get(name, 1.0)
        t = spec.values.get(name, lambda t: t)(t)
        out.append(_layout(t.to(dtype).to(device), layout))
    return tuple(out)
