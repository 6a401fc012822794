# SPDX-License-Identifier: Apache-2.0
"""affinity_map, [A2U] Eq. 4: the sum over the channels of the product of two encodings of a feature map.

With U, V the encodings (pyindexnet/reference/encoding.py), m and b the factor and shift of ``affine`` for either,

    L_u = m_u U + b_u,    f_u = L_u where L_u > 0, else slope L_u,    a[r] = scale sum_c f_u[c, r] f_v[c, r],

f_v likewise; without ``affine``, f_u = U. Backward, for a cotangent g of a, with D_u the derivative of f_u (1 or slope):

    grad_L_u = D_u scale g f_v,    grad_U = m_u grad_L_u,
    grad_m_u = sum over the positions of grad_L_u U,    grad_b_u of grad_L_u.

Its own derivative: with dU, dV the encodings' derivatives along the cotangents, M and B the cotangents of grad_m and grad_b,

    S = <g, scale sum_c (q_u f_v + f_u q_v)>,    q_u = D_u (m_u dU + M_u U + B_u)

and with grad_L as above and E_u = D_u scale g q_v (what reaches L_u through f_u)

    grad_g = scale sum_c (q_u f_v + f_u q_v),    A_u = m_u grad_L_u (of dU),    A'_u = M_u grad_L_u + m_u E_u (of U),
    grad_m_u = sum over the positions of grad_L_u dU + E_u U,    grad_b_u of E_u.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .encoding import encode, encoding_double_backward, gather, grad_windows, stack, sum_windows, unstack, windows


def _coefficients(affine: Tensor | None, p: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift, (N, C, e, d, 1, 1); 1 and 0 without ``affine``."""
    if affine is None:
        return p.new_ones(()), p.new_zeros(())
    factor, shift = affine.to(p.dtype).transpose(2, 3)[..., None, None, :].unbind(-1)
    return factor, shift


def _activate(encodings: Tensor, affine: Tensor | None, slope: float) -> tuple[Tensor, Tensor]:
    """(f, D)."""
    if affine is None:
        return encodings, torch.ones_like(encodings)
    factor, shift = _coefficients(affine, encodings)
    line = encodings * factor + shift
    derivative = torch.where(line > 0, torch.ones_like(line), slope)
    return line * derivative, derivative


def _sums(factors: Tensor, shifts: Tensor) -> Tensor:
    """Gradients of factor and shift, (N, C, d, e, 2), from their values at the positions, (N, C, e, d, h, w)."""
    return torch.stack([factors.sum((4, 5)), shifts.sum((4, 5))], -1).transpose(2, 3)


def _scaled(grad: Tensor, scale: float, p: Tensor) -> Tensor:
    """(N, 1, 1, d, h, w)."""
    return scale * grad.to(p.dtype)[:, None, None]


def affinity_map_reference(
    x: Tensor, u: Tensor, v: Tensor, affine: Tensor | None, stride: int, scale: float, negative_slope: float
) -> Tensor:
    p = windows(x, u.shape[4], stride)
    f, _ = _activate(encode(p, stack(u, v, p)), affine, negative_slope)
    return scale * (f[:, :, 0] * f[:, :, 1]).sum(1)


def affinity_map_backward_reference(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, affine: Tensor | None, stride: int, scale: float, negative_slope: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, u, v and affine."""
    k = u.shape[4]
    p = windows(x, k, stride)
    kernels = stack(u, v, p)
    encodings = encode(p, kernels)
    f, derivative = _activate(encodings, affine, negative_slope)
    lines = derivative * _scaled(grad, scale, p) * f.flip(2)
    grads = _coefficients(affine, p)[0] * lines
    grad_x = gather(grad_windows(grads, kernels), x, k, stride)
    grad_u, grad_v = unstack(sum_windows(p, grads), u)
    return grad_x, grad_u, grad_v, None if affine is None else _sums(lines * encodings, lines)


def affinity_map_double_backward_reference(
    grad_grad_x: Tensor,
    grad_grad_u: Tensor,
    grad_grad_v: Tensor,
    grad_grad_affine: Tensor | None,
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    affine: Tensor | None,
    stride: int,
    scale: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of grad, x, u, v and affine; differentiable again by autograd."""
    k = u.shape[4]
    p, direction_p = windows(x, k, stride), windows(grad_grad_x, k, stride)
    kernels, directions = stack(u, v, p), stack(grad_grad_u, grad_grad_v, p)
    encodings = encode(p, kernels)
    moved = encode(direction_p, kernels) + encode(p, directions)
    f, derivative = _activate(encodings, affine, negative_slope)
    factor, _ = _coefficients(affine, p)
    g = _scaled(grad, scale, p)

    turned = factor * moved
    lines = derivative * g * f.flip(2)
    grads = factor * lines
    if grad_grad_affine is not None:
        along_factor, along_shift = _coefficients(grad_grad_affine, p)
        turned = turned + along_factor * encodings + along_shift
    q = derivative * turned
    through = derivative * g * q.flip(2)
    seconds = factor * through
    if grad_grad_affine is not None:
        seconds = seconds + along_factor * lines
    grad_p, grad_kernels = encoding_double_backward(grads, seconds, p, kernels, direction_p, directions)
    d_affine = None if affine is None else _sums(lines * moved + through * encodings, through)
    return scale * (q * f.flip(2)).sum((1, 2)), gather(grad_p, x, k, stride), *unstack(grad_kernels, u), d_affine
