# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the dynamic-kernel operators share: cases by kernel size, the published formula with ``unfold``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.testing import Sample

from .case import Case, OpBench, Shape


def unfold(x: Tensor, k: int, stride: int = 1) -> Tensor:
    """The pixels under every window, (N, C, k * k, h, w), as the published modules get them."""
    n, c, height, width = x.shape
    before = (k - 1) // 2
    size = (-(-height // stride), -(-width // stride))
    pad = [stride * (out - 1) + k - before - have for out, have in zip(size, (height, width), strict=True)]
    columns = F.unfold(F.pad(x, (before, pad[1], before, pad[0])), k, stride=stride)
    return columns.view(n, c, k * k, *size)


def weigh(pixels: Tensor, z: Tensor, groups: int) -> Tensor:
    """Sum over the taps of (N, C, T, h, w), each group of neighbouring channels with its (N, groups, T, h, w)."""
    n, c, taps, h, w = pixels.shape
    return (pixels.view(n, groups, c // groups, taps, h, w) * z.unsqueeze(2)).sum(3).view(n, c, h, w)


def resolve(variants: Mapping[str, dict[str, Any]], case: Case) -> dict[str, Any]:
    """Options of a case; ``channels_per_group`` becomes ``groups``."""
    options = dict(variants[case.maps])
    if "channels_per_group" in options:
        options["groups"] = max(case.size[1] // options.pop("channels_per_group"), 1)
    return options


@dataclass(frozen=True)
class WindowBench(OpBench):
    """An operator whose cases differ in size and kernel; ``Case.size`` is that of x.

    Attributes:
        variants: what ``Case.maps`` may be, and the operator's options of each.
        sizes: of x, timed in every variant.
    """

    variants: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    sizes: tuple[Shape, ...] = ()

    def options(self, case: Case) -> dict[str, Any]:
        named = {"normalization": self.normalization} if self.normalization else {}
        return {**self.peer_options(case), **named}

    def peer_options(self, case: Case) -> dict[str, Any]:
        return resolve(self.variants, case)

    def timed_samples(self) -> list[Sample]:
        """Of the operator's tests, those that differ from the timed cases only in size, window and groups."""
        fixed = dict(next(iter(self.variants.values())))
        for name in ("kernel_size", "groups", "channels_per_group"):
            fixed.pop(name, None)
        if self.normalization:
            fixed["normalization"] = self.normalization
        return [s for s in self.spec.samples if s.shapes[0][0] and fixed.items() <= s.options.items()]

    def own_cases(self, device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
        if quick:
            return [Case(self.sizes[0], dtype, maps=next(iter(self.variants)), device=device)]
        cases = [Case(size, dtype, maps=kind, device=device) for kind in self.variants for size in self.sizes]
        return [*cases, *(Case(self.sizes[0], dtype, "channels_last", kind, device) for kind in self.variants)]


def kernels_shape(variants: Mapping[str, dict[str, Any]], case: Case, scale: int = 1, stride: int = 1) -> Shape:
    """(N, groups * k * k * scale^2, h, w)."""
    options, (n, _, height, width) = resolve(variants, case), case.size
    channels = options["groups"] * options["kernel_size"] ** 2 * scale**2
    return n, channels, math.ceil(height / stride), math.ceil(width / stride)
