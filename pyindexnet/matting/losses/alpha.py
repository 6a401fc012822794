# SPDX-License-Identifier: Apache-2.0
"""Losses on the values of alpha and on the composite that it makes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pyindexnet.matting.losses._common import (
    Convention,
    charbonnier_mean,
    check_maps,
    find_convention,
    truncated_difference,
)


def alpha_loss(
    prediction: Tensor, target: Tensor, *, mask: Tensor | None = None, convention: str | Convention = "paper"
) -> Tensor:
    """Alpha prediction loss: the Charbonnier distance of two mattes, in the mean over the mask.

    L = mean over i in mask of sqrt((prediction_i - target_i)^2 + e^2). Sources: [IndexNet] 5.1, [TMFNet] Eq. 2 (L_alpha),
    [Thesis] Eq. 6.5, where e = 0: the difference of 1e-6 keeps the gradient finite (docs/references.md).

    Args:
        prediction: (N, 1, H, W), any floating dtype; need not lie in [0, 1].
        target: (N, 1, H, W) in [0, 1].
        mask: pixels that count, usually the unknown region; (N, 1, H, W), bool or weights of 0 or more. None: all.
        convention: a name of :data:`CONVENTIONS` or a :class:`Convention`.
    Returns:
        A scalar, float32 (float64 for float64). A sample with an empty mask counts 0, with a gradient of 0.
    Raises:
        TypeError: a dtype. ValueError: a shape or a name.
    """
    rule = find_convention("alpha_loss", convention)
    prediction, mask, target = check_maps("alpha_loss", prediction, mask, target=(target, 1))
    return charbonnier_mean(truncated_difference(prediction, target, rule), mask, rule)


def composition_loss(
    prediction: Tensor,
    image: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    mask: Tensor | None = None,
    convention: str | Convention = "paper",
) -> Tensor:
    """Composition loss: the Charbonnier distance of the image from the composite that the predicted alpha makes.

    L = mean over i in mask of sum over colours of sqrt((p F + (1 - p) B - I)^2 + e^2); the mean over colours with the
    conventions ``tmfnet`` and ``lsanet``. Sources: [IndexNet] 5.1, [TMFNet] Eq. 2 (L_c).

    Args:
        prediction: p, (N, 1, H, W), any floating dtype.
        image, foreground, background: I, F, B in [0, 1], (N, 3, H, W).
        mask, convention: as for :func:`alpha_loss`; ``truncation`` has no meaning here.
    Returns:
        A scalar, float32 (float64 for float64).
    Raises:
        TypeError: a dtype. ValueError: a shape or a name.
    """
    rule = find_convention("composition_loss", convention)
    prediction, mask, image, foreground, background = check_maps(
        "composition_loss", prediction, mask, image=(image, 3), foreground=(foreground, 3), background=(background, 3)
    )
    composite = prediction * foreground + (1 - prediction) * background
    return charbonnier_mean(composite - image, mask, rule)


def multiscale_alpha_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    levels: int = 5,
    convention: str | Convention = "paper",
) -> Tensor:
    """Alpha prediction loss at several scales.

    L = sum over l = 0 .. levels - 1 of 2^-l alpha_loss(P^l(prediction), P^l(target), P^l(mask)), P an average pooling by 2:
    differences of opposite sign cancel at the coarser scales, so that these judge the mean alpha of a region. Source:
    [LSANet] section 3. Differences are pooled with those outside the mask.

    Args:
        prediction, target, mask: as for :func:`alpha_loss`.
        levels: number of scales, at least 1.
        convention: ``lsanet`` is what the published code trains with.
    Returns:
        A scalar, float32 (float64 for float64).
    Raises:
        TypeError: a dtype. ValueError: a shape or a name, or a side below 2^(levels - 1).
    """
    rule = find_convention("multiscale_alpha_loss", convention)
    prediction, weights, target = check_maps("multiscale_alpha_loss", prediction, mask, target=(target, 1))
    if levels < 1 or min(prediction.shape[2:]) < 2 ** (levels - 1):
        raise ValueError(
            f"multiscale_alpha_loss: levels must be 1 or more with sides of at least 2^(levels - 1), "
            f"got {levels} with {tuple(prediction.shape[2:])}"
        )
    difference = truncated_difference(prediction, target, rule)
    total = charbonnier_mean(difference, weights, rule)
    for level in range(1, levels):
        difference, weights = F.avg_pool2d(difference, 2), F.avg_pool2d(weights, 2)
        total = total + charbonnier_mean(difference, weights, rule) / 2**level
    return total


def region_alpha_loss(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None, whole_weight: float = 10.0) -> Tensor:
    """Alpha loss in regions: l_aU + whole_weight * l_aI, over the unknown region and over the whole image.

    Source: [Thesis] 6.4.1 and 6.5.3 (lambda_1 = 10). Half the image is usually known, and its error must stay small too
    where no trimap is given; the first term keeps the weight on the unknown region.

    Args:
        prediction, target: as for :func:`alpha_loss`.
        mask: the unknown region U. None: the whole image, which then counts 1 + whole_weight.
        whole_weight: of the whole image.
    Returns:
        A scalar, float32 (float64 for float64).
    Raises:
        TypeError: a dtype. ValueError: a shape.
    """
    return alpha_loss(prediction, target, mask=mask) + whole_weight * alpha_loss(prediction, target)
