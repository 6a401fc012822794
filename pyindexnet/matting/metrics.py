# SPDX-License-Identifier: Apache-2.0
"""The four metrics of image matting: SAD, MSE, gradient error, connectivity error.

As the MATLAB evaluation code of the benchmarks defines them (C. Rhemann et al.: A Perceptually Motivated Online Benchmark for
Image Matting, CVPR 2009). Published Python ports differ from it and from each other; :data:`MODES` names what each computes, so
that a printed figure can be compared with the figure that a paper printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch

from pyindexnet.matting.trimaps import BACKGROUND, FOREGROUND, UNKNOWN
from pyindexnet.nn.arguments import require_one_of

Array = np.ndarray | torch.Tensor

#: Scale of the derivative of a Gaussian that the gradient error is defined with, in pixels.
SIGMA = 1.4
#: Connectivity is judged at these alphas: k * STEP, k = 1 .. 10.
STEP = 0.1
#: Distances from connectivity below this count as none.
CONNECTED = 0.15


@dataclass(frozen=True)
class Mode:
    """How an implementation counts, where they differ.

    Attributes:
        stretch: both mattes are first stretched to minimum 0 and maximum 1 (0 where constant), for all metrics.
        whole_sums: SAD and the sum of MSE run over the whole image; MSE is still divided by the number of pixels that count.
        empty_mse: MSE where no pixel counts.
        gradient_stretch: both mattes are stretched for the gradient error (MATLAB's mat2gray).
        gradient_radius: half width of its kernel.
        gradient_unit: the kernel has an L2 norm of 1; else it is the derivative of a Gaussian with a sum of 1.
        gradient_border: of OpenCV, how the image goes on.
        gradient_scale: what the sum is multiplied by.
        double: connectivity compares in float64 with the rounded multiples of 0.1; else in float32, where 153/255 is 0.6.
        empty_disconnects: a level that no pixel of both mattes reaches disconnects all pixels; else it is skipped.
        first_by_column: of components of equal size the one that a scan by columns meets first is the largest; else by rows.
    """

    stretch: bool = False
    whole_sums: bool = False
    empty_mse: float = math.nan
    gradient_stretch: bool = True
    gradient_radius: int = 4
    gradient_unit: bool = True
    gradient_border: int = cv2.BORDER_REPLICATE
    gradient_scale: float = 1e-3
    double: bool = False
    empty_disconnects: bool = False
    first_by_column: bool = True


_LSA = {"whole_sums": True, "gradient_stretch": False, "double": True, "first_by_column": False}
#: By name: the MATLAB code, and the published Python code of IndexNet and A2U, of mmediting (TMFNet), and of LSANet, which has
#: two: its ``eval_loss``, and a gradient error in its ``eval_measure``.
MODES = {
    "matlab": Mode(),
    "indexnet": Mode(
        stretch=True,
        gradient_stretch=False,
        gradient_radius=6,
        gradient_unit=False,
        gradient_border=cv2.BORDER_REFLECT,
        gradient_scale=1e-1,
        first_by_column=False,
    ),
    "mmedit": Mode(whole_sums=True, empty_mse=0.0, empty_disconnects=True, first_by_column=False),
    "lsanet": Mode(gradient_radius=3, **_LSA),
    "lsanet_measure": Mode(gradient_border=cv2.BORDER_CONSTANT, **_LSA),
}
Region = Literal["unknown", "whole"]


@dataclass(frozen=True)
class _Pair:
    """Checked arguments: mattes in float64, and the flat indices of the pixels that count."""

    prediction: np.ndarray
    alpha: np.ndarray
    counted: np.ndarray
    mode: Mode


def sad(
    prediction: Array, alpha: Array, trimap: Array | None = None, *, mode: str | Mode = "matlab", region: Region = "unknown"
) -> float:
    """Sum of absolute differences: sum over the region of |prediction - alpha|, in thousands of pixels.

    Args:
        prediction, alpha: (H, W); floating in [0, 1], or uint8, uint16. NumPy array or tensor.
        trimap: (H, W) uint8 with the values 0, 128 (unknown), 255. None only with ``region="whole"``.
        mode: a name of :data:`MODES`, or a :class:`Mode`.
        region: "unknown" pixels of the trimap, or "whole" image ([Thesis] 6.5.4, set 2).
    Raises:
        TypeError: a dtype. ValueError: a shape, a value or a name.
    """
    return _sad(_check("sad", prediction, alpha, trimap, mode, region))


def mse(
    prediction: Array, alpha: Array, trimap: Array | None = None, *, mode: str | Mode = "matlab", region: Region = "unknown"
) -> float:
    """Mean over the region of (prediction - alpha)^2, per pixel; NaN where the region is empty.

    Arguments and errors as of :func:`sad`.
    """
    return _mse(_check("mse", prediction, alpha, trimap, mode, region))


def gradient_error(
    prediction: Array, alpha: Array, trimap: Array | None = None, *, mode: str | Mode = "matlab", region: Region = "unknown"
) -> float:
    """Gradient error: sum over the region of (|g(prediction)| - |g(alpha)|)^2, in thousands.

    g is the response to the two first derivatives of a Gaussian, sigma = 1.4, in 9 x 9 pixels with an L2 norm of 1, borders
    replicated, of the mattes stretched to [0, 1]. Windows reach beyond the region.

    Arguments and errors as of :func:`sad`.
    """
    return _gradient_error(_check("gradient_error", prediction, alpha, trimap, mode, region))


def connectivity_error(
    prediction: Array, alpha: Array, trimap: Array | None = None, *, mode: str | Mode = "matlab", region: Region = "unknown"
) -> float:
    """Connectivity error: sum over the region of |phi(prediction) - phi(alpha)|, in thousands of pixels.

    phi = 1 - d where d = matte - l is at least 0.15, else 1. l of a pixel is the largest multiple of 0.1 up to which it is
    connected (4 neighbours) with the largest component of the pixels that reach that alpha in both mattes; such components
    extend beyond the region.

    Arguments and errors as of :func:`sad`.
    """
    return _connectivity_error(_check("connectivity_error", prediction, alpha, trimap, mode, region))


def evaluate_pair(
    prediction: Array, alpha: Array, trimap: Array | None = None, *, mode: str | Mode = "matlab", region: Region = "unknown"
) -> dict[str, float]:
    """All four metrics by name: sad, mse, grad, conn. Arguments and errors as of :func:`sad`."""
    pair = _check("evaluate_pair", prediction, alpha, trimap, mode, region)
    return {name: metric(pair) for name, metric in _METRICS.items()}


def gradient_magnitude(matte: np.ndarray, mode: Mode = MODES["matlab"]) -> np.ndarray:
    """|g| of :func:`gradient_error`.

    Args:
        matte: (H, W), floating.
        mode: the kernel, the border and whether the matte is stretched.
    Returns:
        (H, W) float64.
    """
    image = np.ascontiguousarray(matte, np.float64)
    if mode.gradient_stretch:
        image = _stretched(image)
    x = np.arange(-mode.gradient_radius, mode.gradient_radius + 1, dtype=np.float64)
    gaussian = np.exp(-(x**2) / (2 * SIGMA**2))
    gaussian /= gaussian.sum()
    derivative = x / SIGMA**2 * gaussian
    if mode.gradient_unit:
        gaussian /= np.linalg.norm(gaussian)
        derivative /= np.linalg.norm(derivative)
    horizontal = cv2.sepFilter2D(image, cv2.CV_64F, derivative, gaussian, borderType=mode.gradient_border)
    vertical = cv2.sepFilter2D(image, cv2.CV_64F, gaussian, derivative, borderType=mode.gradient_border)
    return cv2.magnitude(horizontal, vertical)


def connected_level(prediction: np.ndarray, alpha: np.ndarray, mode: Mode = MODES["matlab"]) -> np.ndarray:
    """l of :func:`connectivity_error`.

    Args:
        prediction, alpha: (H, W), floating.
        mode: precision, empty levels and ties.
    Returns:
        (H, W) float64: multiples of 0.1 from 0 to 1.
    """
    dtype = np.float64 if mode.double else np.float32
    both = np.minimum(prediction, alpha).astype(dtype)
    levels_held = np.zeros(both.shape, np.uint8)
    connected = np.ones(both.shape, bool)
    for k in range(1, round(1 / STEP) + 1):
        reached = both >= dtype(k * STEP)  # in float64 0.6 is below 6 * 0.1
        if mode.empty_disconnects or reached.any():
            connected &= _largest_component(reached, mode.first_by_column)
        levels_held += connected.view(np.uint8)
    return levels_held * STEP


def _largest_component(mask: np.ndarray, first_by_column: bool) -> np.ndarray:
    """Where the largest 4-connected component of ``mask`` is; nowhere in an empty mask."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    if count == 1:
        return np.zeros_like(mask)
    sizes = statistics[:, cv2.CC_STAT_AREA]
    sizes[0] = 0  # the background
    largest = np.flatnonzero(sizes == sizes.max())
    label = largest[0]
    if len(largest) > 1:
        scan = labels.T if first_by_column else labels
        label = scan[np.unravel_index(np.isin(scan, largest).argmax(), scan.shape)]
    return labels == label


def _sad(pair: _Pair) -> float:
    return float(_differences(pair).sum() / 1000)


def _mse(pair: _Pair) -> float:
    count = pair.counted.size
    return float(np.square(_differences(pair)).sum() / count) if count else pair.mode.empty_mse


def _differences(pair: _Pair) -> np.ndarray:
    difference = cv2.absdiff(pair.prediction, pair.alpha)
    return difference if pair.mode.whole_sums else difference.take(pair.counted)


def _gradient_error(pair: _Pair) -> float:
    difference = gradient_magnitude(pair.prediction, pair.mode) - gradient_magnitude(pair.alpha, pair.mode)
    return float(np.square(difference.take(pair.counted)).sum() * pair.mode.gradient_scale)


def _connectivity_error(pair: _Pair) -> float:
    level = connected_level(pair.prediction, pair.alpha, pair.mode).take(pair.counted)
    excess = [m.take(pair.counted) - level for m in (pair.prediction, pair.alpha)]
    for distance in excess:
        distance[distance < CONNECTED] = 0
    return float(np.abs(excess[0] - excess[1]).sum() / 1000)


_METRICS: dict[str, Callable[[_Pair], float]] = {
    "sad": _sad,
    "mse": _mse,
    "grad": _gradient_error,
    "conn": _connectivity_error,
}


def _stretched(matte: np.ndarray) -> np.ndarray:
    low, high = matte.min(), matte.max()
    return (matte - low) / (high - low) if high > low else np.zeros_like(matte)


def _check(owner: str, prediction: Array, alpha: Array, trimap: Array | None, mode: str | Mode, region: Region) -> _Pair:
    if not isinstance(mode, Mode):
        require_one_of(owner, "mode", mode, MODES)
        mode = MODES[mode]
    require_one_of(owner, "region", region, ("unknown", "whole"))
    mattes = [_matte(owner, name, value) for name, value in (("prediction", prediction), ("alpha", alpha))]
    if mattes[0].shape != mattes[1].shape:
        raise ValueError(f"{owner}: alpha must be {mattes[0].shape}, the shape of prediction, got {mattes[1].shape}")
    if mode.stretch:
        mattes = [_stretched(m) for m in mattes]
    if region == "whole":
        counted = np.arange(mattes[0].size)
    elif trimap is None:
        raise ValueError(f'{owner}: trimap must be given unless region is "whole", got None')
    else:
        counted = np.flatnonzero(_unknown(owner, trimap, mattes[0].shape))
    return _Pair(mattes[0], mattes[1], counted, mode)


def _numpy(value: Array) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _matte(owner: str, name: str, value: Array) -> np.ndarray:
    matte = _numpy(value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value)
    if matte.ndim != 2 or not matte.size:
        raise ValueError(f"{owner}: {name} must be (H, W) with H, W > 0, got {matte.shape}")
    if matte.dtype in (np.uint8, np.uint16):
        return matte / np.iinfo(matte.dtype).max
    if not np.issubdtype(matte.dtype, np.floating):
        raise TypeError(f"{owner}: {name} must be floating, uint8 or uint16, got {matte.dtype}")
    if not (matte.min() >= 0 and matte.max() <= 1):  # also false for NaN
        raise ValueError(f"{owner}: {name} must be in [0, 1], got {matte.min():g} to {matte.max():g}")
    return matte.astype(np.float64)


def _unknown(owner: str, value: Array, shape: tuple[int, ...]) -> np.ndarray:
    trimap = _numpy(value)
    if trimap.shape != shape:
        raise ValueError(f"{owner}: trimap must be {shape}, the shape of prediction, got {trimap.shape}")
    if trimap.dtype != np.uint8:
        raise TypeError(f"{owner}: trimap must be uint8, got {trimap.dtype}")
    unknown = trimap == UNKNOWN
    others = ~unknown & (trimap != BACKGROUND) & (trimap != FOREGROUND)
    if others.any():
        level = trimap[others][0]
        raise ValueError(f"{owner}: trimap must hold 0, 128 and 255 alone (see quantize_trimap), got {level}")
    return unknown
