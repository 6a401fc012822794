# SPDX-License-Identifier: Apache-2.0
"""What all losses share: checks of arguments, conventions of the published code, and means that stay finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyindexnet.nn.arguments import require_one_of


@dataclass(frozen=True)
class Convention:
    """How a loss counts, where papers and published code differ.

    Attributes:
        epsilon: e in sqrt(d^2 + e^2), 1e-18 or more.
        per_sample: a mean of the samples' means (True), or one mean over all pixels of the batch.
        area_offset: added to the pixel count that a sum is divided by.
        known_floor: pixels outside the mask add e to the sum: the published code masks differences before the root.
        colours: the composition loss takes the sum or the mean over the three colours.
        truncation: t; a prediction above 1 where the target is above 1 - t, or below 0 where it is below t, is taken for
            right. None: not so.
    """

    epsilon: float = 1e-6
    per_sample: bool = True
    area_offset: float = 0.0
    known_floor: bool = False
    colours: Literal["sum", "mean"] = "sum"
    truncation: float | None = None

    def __post_init__(self) -> None:
        if not self.epsilon >= 1e-18:
            raise ValueError(f"Convention: epsilon must be 1e-18 or more, whose square float32 can hold, got {self.epsilon}")
        if not self.area_offset >= 0:
            raise ValueError(f"Convention: area_offset must be 0 or more, got {self.area_offset}")
        require_one_of("Convention", "colours", self.colours, ("sum", "mean"))


#: By name: the papers' formulas, and what the published training code of each paper computes.
CONVENTIONS = {
    "paper": Convention(),
    "indexnet": Convention(known_floor=True),
    "a2u": Convention(known_floor=True, area_offset=1),
    "tmfnet": Convention(colours="mean"),
    "lsanet": Convention(epsilon=1e-3, per_sample=False, area_offset=1, colours="mean", truncation=1e-3),
}


def find_convention(owner: str, convention: str | Convention) -> Convention:
    """The convention of a name; ``owner`` is the loss that errors name."""
    if isinstance(convention, Convention):
        return convention
    require_one_of(owner, "convention", convention, CONVENTIONS)
    return CONVENTIONS[convention]


def check_maps(owner: str, prediction: Tensor, mask: Tensor | None, **others: tuple[Tensor, int]) -> list[Tensor]:
    """Check the arguments of a loss.

    Args:
        owner: the loss, for messages.
        prediction: must be (N, 1, H, W), floating.
        mask: None, or (N, 1, H, W), bool or floating.
        others: by name, a floating tensor and the number of its channels; it must be (N, channels, H, W).
    Returns:
        prediction, mask (of ones where None) and the others; half types as float32, because a sum over pixels would lose them.
    Raises:
        TypeError, ValueError.
    """
    if prediction.dim() != 4 or prediction.shape[1] != 1:
        raise ValueError(f"{owner}: prediction must be (N, 1, H, W), got {tuple(prediction.shape)}")
    if not prediction.is_floating_point():
        raise TypeError(f"{owner}: prediction must be floating, got {prediction.dtype}")
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    if mask is not None:
        if mask.shape != prediction.shape:
            raise ValueError(f"{owner}: mask must be {tuple(prediction.shape)}, got {tuple(mask.shape)}")
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"{owner}: mask must be bool or floating, got {mask.dtype}")
    checked = [prediction.to(dtype), torch.ones_like(prediction, dtype=dtype) if mask is None else mask.to(dtype)]
    for name, (tensor, channels) in others.items():
        want = (prediction.shape[0], channels, *prediction.shape[2:])
        if tuple(tensor.shape) != want:
            raise ValueError(f"{owner}: {name} must be {want}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{owner}: {name} must be floating, got {tensor.dtype}")
        checked.append(tensor.to(dtype))
    return checked


def masked_mean(values: Tensor, mask: Tensor, *, per_sample: bool = False, area_offset: float = 0.0) -> Tensor:
    """sum(mask * values) / (sum(mask) + area_offset), over the batch or per sample and then averaged.

    A sample, or batch, whose mask is empty counts 0 and has a gradient of 0. Values where the mask is 0 may be anything.

    Args:
        values: (N, 1, H, W). mask: weights of 0 or more, (N, 1, H, W).
    Returns:
        A scalar.
    """
    return mean_of_sum(values.where(mask > 0, 0) * mask, mask, per_sample=per_sample, area_offset=area_offset)


def mean_of_sum(terms: Tensor, mask: Tensor, *, per_sample: bool, area_offset: float) -> Tensor:
    """As :func:`masked_mean`, of terms that are weighted already."""
    dims = (1, 2, 3) if per_sample else (0, 1, 2, 3)
    total, area = terms.sum(dims), mask.sum(dims)
    filled = area > 0
    means = total.where(filled, 0) / (area + area_offset).where(filled, 1)
    return means.sum() / max(means.numel(), 1)


def charbonnier_mean(difference: Tensor, mask: Tensor, convention: Convention) -> Tensor:
    """Mean of sqrt(d^2 + e^2) over the mask, channels combined as ``convention.colours`` says.

    Args:
        difference: (N, C, H, W). mask: (N, 1, H, W).
    """
    inside = difference.where(mask > 0, 0)
    if convention.known_floor:
        terms = (inside * mask).square().add(convention.epsilon**2).sqrt()
    else:
        terms = inside.square().add(convention.epsilon**2).sqrt() * mask
    combined = terms.sum(1, keepdim=True) if convention.colours == "sum" else terms.mean(1, keepdim=True)
    return mean_of_sum(combined, mask, per_sample=convention.per_sample, area_offset=convention.area_offset)


def truncated_difference(prediction: Tensor, target: Tensor, convention: Convention) -> Tensor:
    """prediction - target, 0 where ``convention.truncation`` takes the prediction for right."""
    if convention.truncation is None:
        return prediction - target
    over = (target > 1 - convention.truncation) & (prediction > 1)
    under = (target < convention.truncation) & (prediction < 0)
    return prediction - torch.where(over | under, prediction.detach(), target)
