# SPDX-License-Identifier: Apache-2.0
"""CARAFE under the signature of mmcv, on the kernels of dynamic_upsample."""

from __future__ import annotations

from torch import Tensor

from ._common import autocast_inputs, check_choice, check_tensor
from ._register import check_image
from ._window import check_groups, check_kernels
from .dynamic_upsample import KERNEL_SIZES, SCALES, dynamic_upsample

_OP = "carafe"


def carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int = 1,
    scale_factor: int = 2,
    *,
    backend: str | None = None,
) -> Tensor:
    """Content-aware reassembly with masks that are normalised and shuffled already; a drop-in for ``mmcv.ops.carafe``.

    The same as :func:`pyindexnet.dynamic_upsample` with ``layout="dense"`` and ``normalization="none"``; the equation is there.
    On raw logits that function is faster: it reads them once and writes no mask.

    Args:
        features: (N, C, h, w).
        masks: (N, group_size * kernel_size^2, H, W), H = scale_factor * h, W likewise; dtype and device of ``features``.
        kernel_size: 1, 3, 5 or 7.
        group_size: number of groups (mmcv's name); divides C.
        scale_factor: 1 to 4.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, C, H, W), dtype and memory format of ``features``.
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: features, masks; twice differentiable. Under autocast, inputs are cast to its dtype.
    """
    features, masks = autocast_inputs(features, masks)
    check_choice(_OP, "kernel_size", kernel_size, KERNEL_SIZES)
    check_choice(_OP, "scale_factor", scale_factor, SCALES)
    check_image(_OP, "features", features)
    check_groups(_OP, features, group_size, "group_size", "features")
    check_tensor(_OP, "masks", masks, ("N", "channels", "H", "W"))
    h, w = features.shape[2:]
    check_kernels(_OP, "masks", features, masks, group_size * kernel_size**2, scale_factor * h, scale_factor * w, "features")
    return dynamic_upsample(
        features,
        masks,
        kernel_size=kernel_size,
        groups=group_size,
        scale=scale_factor,
        normalization="none",
        layout="dense",
        backend=backend,
    )
