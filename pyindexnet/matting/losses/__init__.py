# SPDX-License-Identifier: Apache-2.0
"""Losses for training matting networks.

Each is ``loss(prediction, target, ..., mask=...) -> scalar`` on (N, 1, H, W) mattes, computed in float32 (float64 for float64)
under autocast too, finite with a finite gradient where a sample has no pixel in its mask, and without host synchronisation.
"""

from pyindexnet.matting.losses._common import CONVENTIONS, Convention
from pyindexnet.matting.losses.alpha import alpha_loss, composition_loss, multiscale_alpha_loss, region_alpha_loss
from pyindexnet.matting.losses.recipes import indexnet_loss, pspm_loss, rmat_loss, tmfnet_loss
from pyindexnet.matting.losses.structure import affinity_loss, gradient_loss, laplacian_loss, region_gradient_loss

__all__ = [
    "CONVENTIONS",
    "Convention",
    "affinity_loss",
    "alpha_loss",
    "composition_loss",
    "gradient_loss",
    "indexnet_loss",
    "laplacian_loss",
    "multiscale_alpha_loss",
    "pspm_loss",
    "region_alpha_loss",
    "region_gradient_loss",
    "rmat_loss",
    "tmfnet_loss",
]
