# SPDX-License-Identifier: Apache-2.0
"""Losses on the structure of alpha: Laplacian pyramid, gradients, affinities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.matting.losses._common import check_maps, masked_mean
from pyindexnet.nn.arguments import require_one_of

_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)
_SOBEL_SMOOTH, _SOBEL_DIFFERENCE = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)


def laplacian_loss(
    prediction: Tensor, target: Tensor, *, mask: Tensor | None = None, levels: int = 5, per_sample: bool = False
) -> Tensor:
    """Laplacian pyramid loss.

    L = sum over l = 0 .. levels - 1 of 2^l mean |L^l(prediction) - L^l(target)|, L^l = G^l - up(G^(l+1)) the band-pass of
    a Gaussian pyramid with the 5 x 5 binomial kernel; the coarsest low-pass does not count. The mask is decimated with the
    pyramid. Sources: [TMFNet] Eq. 2 (L_lap), [Thesis] 5.5.1 (l_lap). Any size: the published code needs multiples of 2^levels.

    Args:
        prediction: (N, 1, H, W), any floating dtype. target: (N, 1, H, W).
        mask: pixels that count, (N, 1, H, W), bool or weights of 0 or more. None: all.
        levels: of the pyramid, at least 1.
        per_sample: average the means of the samples, instead of one mean over the batch as the published code.
    Returns:
        A scalar, float32 (float64 for float64). A level whose mask is empty counts 0.
    Raises:
        TypeError: a dtype. ValueError: a shape, or an image too small for ``levels`` (a level with a side below 3).
    """
    prediction, weights, target = check_maps("laplacian_loss", prediction, mask, target=(target, 1))
    smallest = min(prediction.shape[2:])
    for _ in range(levels - 1):
        smallest = -(-smallest // 2)
    if levels < 1 or smallest < 3:
        raise ValueError(
            f"laplacian_loss: levels must be 1 or more with sides of at least 3 at the last, "
            f"got {levels} with {tuple(prediction.shape[2:])}"
        )
    low = prediction - target  # the pyramid is linear: one of the difference serves
    total = prediction.new_zeros(())
    for level in range(levels):
        lower = _binomial(low, stride=2)
        band = low - 4 * _binomial(_spread(lower, low))
        total = total + 2**level * masked_mean(band.abs(), weights, per_sample=per_sample)
        low, weights = lower, weights[..., ::2, ::2]
    return total


def _binomial(x: Tensor, stride: int = 1) -> Tensor:
    for dim in (-2, -1):
        x = _correlate(_extended(x, dim, (2, 1), (-2, -3)), _BINOMIAL, dim, stride)
    return x / 256


def _spread(low: Tensor, like: Tensor) -> Tensor:
    """``low`` at the even positions of a map of zeros as large as ``like``."""
    spread = torch.stack((low, torch.zeros_like(low)), dim=-1).flatten(-2)
    spread = torch.stack((spread, torch.zeros_like(spread)), dim=-2).flatten(-3, -2)
    return spread[..., : like.shape[-2], : like.shape[-1]]


def _correlate(x: Tensor, taps: tuple[float, ...], dim: int, stride: int = 1) -> Tensor:
    """Correlation along ``dim``, -2 or -1, every ``stride``-th value.

    Sums of slices: autocast would round the values of a convolution, and its kernel would be copied to the device.
    """
    length = x.shape[dim] - len(taps) + 1
    slices = (tap * x.narrow(dim, k, length) for k, tap in enumerate(taps) if tap)
    total, *others = (s[..., ::stride, :] if dim == -2 else s[..., ::stride] for s in slices)
    for term in others:
        total = total + term
    return total


def _extended(x: Tensor, dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """``x`` with copies of its rows or columns of these indices; F.pad has no deterministic backward on a GPU."""

    def copies(indices: tuple[int, ...]) -> list[Tensor]:
        return [x.narrow(dim, i % x.shape[dim], 1) for i in indices]

    return torch.cat([*copies(before), x, *copies(after)], dim)


def spatial_gradients(x: Tensor, operator: str = "difference") -> tuple[Tensor, Tensor]:
    """Horizontal and vertical gradient of (N, 1, H, W), same shape; the image goes on as its border pixels.

    Args:
        operator: "difference": the next pixel less this one; "sobel": the 3 x 3 operator, without a scale.
    """
    if operator == "difference":
        right, below = _extended(x, -1, (), (-1,)), _extended(x, -2, (), (-1,))
        return right[..., 1:] - x, below[..., 1:, :] - x
    rows, columns = (_extended(x, dim, (0,), (-1,)) for dim in (-2, -1))
    smooth_down, smooth_across = _correlate(rows, _SOBEL_SMOOTH, -2), _correlate(columns, _SOBEL_SMOOTH, -1)
    return (
        _correlate(_extended(smooth_down, -1, (0,), (-1,)), _SOBEL_DIFFERENCE, -1),
        _correlate(_extended(smooth_across, -2, (0,), (-1,)), _SOBEL_DIFFERENCE, -2),
    )


def _steepness(x: Tensor, operator: str) -> Tensor:
    horizontal, vertical = spatial_gradients(x, operator)
    return horizontal.abs() + vertical.abs()


def gradient_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    operator: str = "difference",
    penalty: float = 0.0,
    per_sample: bool = False,
) -> Tensor:
    """Gradient loss, with a penalty on the gradient where ``penalty`` is not 0.

    L = mean (|dx p - dx t| + |dy p - dy t|) + penalty * mean (|dx p| + |dy p|). Source: [Thesis] Eq. 5.4: l_g without, l_gp
    with penalty = 0.01; norms are means over the mask. [TMFNet]'s published gradient loss is ``operator="sobel"``.

    Args:
        prediction: p, (N, 1, H, W), any floating dtype. target: t, (N, 1, H, W).
        mask: pixels whose gradients count, (N, 1, H, W), bool or weights of 0 or more. None: all.
        operator: "difference" or "sobel", see :func:`spatial_gradients`.
        penalty: lambda, 0 or more.
        per_sample: average the means of the samples, instead of one mean over the batch.
    Returns:
        A scalar, float32 (float64 for float64).
    Raises:
        TypeError: a dtype. ValueError: a shape, a name or a negative penalty.
    """
    require_one_of("gradient_loss", "operator", operator, ("difference", "sobel"))
    if not penalty >= 0:
        raise ValueError(f"gradient_loss: penalty must be 0 or more, got {penalty}")
    prediction, weights, target = check_maps("gradient_loss", prediction, mask, target=(target, 1))
    magnitude = _steepness(prediction - target, operator)
    if penalty:
        magnitude = magnitude + penalty * _steepness(prediction, operator)
    return masked_mean(magnitude, weights, per_sample=per_sample)


def region_gradient_loss(
    prediction: Tensor, target: Tensor, *, mask: Tensor | None = None, other_weight: float = 0.5
) -> Tensor:
    """Sobel gradient loss in regions: g_u + other_weight * g_o, over the unknown region and over all other pixels.

    Each g is the mean of |G_x p - G_x t| + |G_y p - G_y t|, G the Sobel operator. Source: [Thesis] 6.4.2 and Eq. 6.6-6.8.

    Args:
        prediction, target: as for :func:`gradient_loss`.
        mask: the unknown region, (N, 1, H, W), bool or weights in [0, 1]. None: the whole image.
        other_weight: of the other pixels.
    Returns:
        A scalar, float32 (float64 for float64).
    Raises:
        TypeError: a dtype. ValueError: a shape.
    """
    prediction, unknown, target = check_maps("region_gradient_loss", prediction, mask, target=(target, 1))
    magnitude = _steepness(prediction - target, "sobel")
    return masked_mean(magnitude, unknown) + other_weight * masked_mean(magnitude, 1 - unknown)


def affinity_loss(prediction: Tensor, image: Tensor, *, mask: Tensor | None = None, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Affinity loss: pixels that look alike should have a like alpha.

    A_ij = exp(-|I_i - I_j|^2 / s^2) between all pixels of the image, and likewise of alpha, both averaged down to ``size``;
    L = |A_alpha - A_I|_2 over all pairs, as a root mean square, which does not grow with ``size``. s is the largest distance
    of two pixels (the smallest is 0). Source: [Thesis] Eq. 6.4 and 6.9.

    Args:
        prediction: alpha, (N, 1, H, W), any floating dtype.
        image: I, (N, C, H, W), floating.
        mask: pixels whose pairs count, (N, 1, H, W), bool or weights of 0 or more. None: all.
        size: (h, w) of the grid that is compared; the cost grows with (h w)^2.
    Returns:
        A scalar, float32 (float64 for float64): the mean of the samples.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    """
    prediction, weights, image = check_maps("affinity_loss", prediction, mask, image=(image, image.shape[1]))
    alpha, colours, weights = (
        _pooled(t, size).flatten(2).transpose(1, 2) for t in (prediction, image, weights)
    )  # (N, h*w, channels)
    difference = _affinities(alpha) - _affinities(colours)
    pairs = weights * weights.transpose(1, 2)
    total = pairs.sum((1, 2))
    share = pairs / total.where(total > 0, 1)[:, None, None]
    # vector_norm has a gradient of 0 at 0, where the root of a mean of squares has none
    distances = torch.linalg.vector_norm(share.sqrt() * difference, dim=(1, 2))
    return distances.sum() / max(distances.numel(), 1)


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = x.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(x, size)
    # The same for whole windows, with a backward that is deterministic on a GPU too.
    return F.avg_pool2d(x, (height // size[0], width // size[1]))


def _affinities(pixels: Tensor) -> Tensor:
    """(N, P, C) -> (N, P, P)."""
    # differences, not |a|^2 + |b|^2 - 2ab, which cancels; channel by channel, so that no (P, P, C) tensor exists
    distances = pixels.new_zeros(pixels.shape[0], pixels.shape[1], pixels.shape[1])
    for channel in pixels.unbind(2):
        distances = distances + (channel[:, :, None] - channel[:, None, :]).square()
    scale = distances.amax((1, 2), keepdim=True)
    return torch.exp(-distances / scale.where(scale > 0, 1))
