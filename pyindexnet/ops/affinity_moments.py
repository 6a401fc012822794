# SPDX-License-Identifier: Apache-2.0
"""affinity_moments: schema, fake, autograd, public function."""

from __future__ import annotations

from torch import Tensor

from ..reference.affinity_moments import (
    affinity_moments_backward_reference,
    affinity_moments_double_backward_reference,
    affinity_moments_reference,
)
from ._common import autocast_inputs, dispatch
from ._encoding import check_encoding
from ._register import Sizes, register_operator
from ._window import check_groups

_OP = "affinity_moments"


def _sizes(op: str, x: Tensor, u: Tensor, v: Tensor, groups: int, stride: int) -> Sizes:
    """Checks the arguments; the shape of the moments."""
    check_encoding(op, x, u, v, stride)
    check_groups(op, x, groups)
    return ((x.shape[0], groups, u.shape[2], 2, 2),)


register_operator(
    _OP,
    tensors=("x", "u", "v"),
    options="int groups, int stride",
    sizes=_sizes,
    reference=affinity_moments_reference,
    backward_reference=affinity_moments_backward_reference,
    double_backward_reference=affinity_moments_double_backward_reference,
)


def affinity_moments(x: Tensor, u: Tensor, v: Tensor, *, groups: int, stride: int = 2, backend: str | None = None) -> Tensor:
    """Mean and variance of the encodings of :func:`pyindexnet.affinity_map` over groups of channels and all positions.

    With U and V the encodings, n = (C / groups) · h · w values in a group:
    m[n,g,r,0,0] = Σ_{c in g, i, j} U[n,c,r,i,j] / n,  m[n,g,r,0,1] = Σ (U - m[n,g,r,0,0])² / n (biased),
    and m[n,g,r,1] the same of V.
    The statistics of a group normalisation of the encodings, which are not written. Source: [A2U], the rows of its table 3 with
    normalisation.

    Args:
        x, u, v, stride: as of :func:`pyindexnet.affinity_map`.
        groups: of neighbouring channels; divides C.
        backend: see :mod:`pyindexnet.backends`.
    Returns:
        (N, groups, d, 2, 2), contiguous, dtype of ``x``; the last axes are (u or v) and (mean, variance).
    Raises:
        TypeError: an argument is not a tensor. ValueError: shape, dtype, device or option.
        BackendError: the forced backend cannot run.
    Gradients: x, u, v; twice differentiable. Under autocast, inputs are cast to its dtype.
    Memory: saves the inputs; the backward computes the encodings again. Deterministic: yes (no atomics). Deviations from a
        mean are squared and summed: nothing cancels where the mean is large.
    """
    x, u, v = autocast_inputs(x, u, v)
    _sizes(_OP, x, u, v, groups, stride)
    return dispatch(_OP, backend, (x, u, v))(x, u, v, groups, stride)
