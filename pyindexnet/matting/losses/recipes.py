# SPDX-License-Identifier: Apache-2.0
"""The sums of losses that the papers train with."""

from __future__ import annotations

from torch import Tensor

from pyindexnet.matting.losses._common import Convention
from pyindexnet.matting.losses.alpha import alpha_loss, composition_loss, region_alpha_loss
from pyindexnet.matting.losses.structure import affinity_loss, gradient_loss, laplacian_loss, region_gradient_loss


def indexnet_loss(
    prediction: Tensor,
    target: Tensor,
    image: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    mask: Tensor | None = None,
    alpha_weight: float = 0.5,
    convention: str | Convention = "paper",
) -> Tensor:
    """alpha_weight * L_alpha + (1 - alpha_weight) * L_c. Sources: [IndexNet] 5.1, [A2U] 6.3; arguments as of the two losses."""
    return alpha_weight * alpha_loss(prediction, target, mask=mask, convention=convention) + (
        1 - alpha_weight
    ) * composition_loss(prediction, image, foreground, background, mask=mask, convention=convention)


def tmfnet_loss(
    prediction: Tensor,
    target: Tensor,
    image: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    mask: Tensor | None = None,
    weights: tuple[float, float, float] = (0.5, 1.5, 0.2),
) -> Tensor:
    """0.5 L_alpha + 1.5 L_c + 0.2 L_lap. Source: [TMFNet] Eq. 2; arguments as of the three losses."""
    return (
        weights[0] * alpha_loss(prediction, target, mask=mask, convention="tmfnet")
        + weights[1] * composition_loss(prediction, image, foreground, background, mask=mask, convention="tmfnet")
        + weights[2] * laplacian_loss(prediction, target, mask=mask)
    )


def rmat_loss(
    prediction: Tensor,
    target: Tensor,
    image: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    mask: Tensor | None = None,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    penalty: float = 0.01,
) -> Tensor:
    """L_alpha + L_c + l_lap + l_gp. Source: [Thesis] 5.5.1, table 5.3, which prints no weights: 1 each; arguments as there."""
    return (
        weights[0] * alpha_loss(prediction, target, mask=mask)
        + weights[1] * composition_loss(prediction, image, foreground, background, mask=mask)
        + weights[2] * laplacian_loss(prediction, target, mask=mask)
        + weights[3] * gradient_loss(prediction, target, mask=mask, penalty=penalty)
    )


def pspm_loss(
    prediction: Tensor,
    target: Tensor,
    image: Tensor,
    *,
    mask: Tensor | None = None,
    weights: tuple[float, float, float] = (10.0, 10.0, 10.0),
    size: tuple[int, int] = (32, 32),
) -> Tensor:
    """l_aU + 10 l_aI + 10 l_g + 10 l_A, the second training phase. Source: [Thesis] 6.5.3; arguments as of the four losses."""
    return (
        region_alpha_loss(prediction, target, mask=mask, whole_weight=weights[0])
        + weights[1] * region_gradient_loss(prediction, target, mask=mask)
        + weights[2] * affinity_loss(prediction, image, size=size)
    )
