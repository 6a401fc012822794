# SPDX-License-Identifier: Apache-2.0
"""Convolution at stride 1 with a fraction of the multiplications, for inference on the CPU.

Minimal filtering ("Arithmetic Complexity of Computations", Winograd, 1980): a convolution of m outputs with r taps is a product
of polynomials, and m + r - 1 of its values determine that. Transposed, and in two dimensions, for an 8 x 8 tile d of the input,
a kernel g and m = 9 - r:

    y = A' [(G g G') * (B' d B)] A

G evaluates the kernel at the points, scaled: row j holds p_j^t / prod_{l != j} (p_j - p_l). Row j of B' holds the coefficients
of prod_{l != j} (x - p_l), its last row those of the product over all points. A' holds the powers p_j^i. The eighth point is
infinity, where a polynomial's value is its leading coefficient. 64 products make 16 outputs of a 5 x 5 kernel, which takes 400
otherwise, or 36 of a 3 x 3 kernel, which takes 324. The price is accuracy: larger numbers cancel, and errors are some four
(5 x 5) or ten times (3 x 3) those of the direct sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension
from ._common import absent_kernel

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
KERNEL_SIZES = (3, 5)
#: Output channels are padded to a multiple of this, and no input may have fewer: the widest vector.
VECTOR = 16

_TILES = torch.cpu._is_amx_tile_supported()
_NAME = "pyindexnet::winograd_convolution"
torch.library.define(
    _NAME,
    "(Tensor x, Tensor more, Tensor weight, Tensor bias, int channels, int kernel_size, float low, float high) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_GRADIENT = "pyindexnet::winograd_weight_gradient"
torch.library.define(_GRADIENT, "(Tensor grad, Tensor x, int kernel_size) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_absent = absent_kernel("winograd_weight_gradient", "cpu")


@torch.library.register_fake(_NAME)
def _fake(
    x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, channels: int, kernel_size: int, low: float, high: float
) -> Tensor:
    size = (x.shape[0], channels, x.shape[2], x.shape[3])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake(_GRADIENT)
def _fake_gradient(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    return x.new_empty((len(POINTS) + 1) ** 2 * x.shape[1], grad.shape[1] + -grad.shape[1] % VECTOR)


def why_not(x: Tensor, weight: Tensor, *, training: bool = False) -> str | None:
    """None where the kernel can convolve ``x`` with ``weight`` (K, C, r, r), else the reason why it cannot.

    ``training``: whether the gradient of the weight is wanted too.
    """
    if _extension.MODULE is None:
        return _extension.REASON
    if training and _absent is not None:
        return _absent()
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return f"it takes float32 and bfloat16 on the CPU, not {x.dtype} on {x.device}"
    if x.dtype == torch.bfloat16 and _TILES:
        return "this processor multiplies bfloat16 in tiles (AMX), which is faster"
    if weight.shape[2] != weight.shape[3] or weight.shape[2] not in KERNEL_SIZES:
        return f"it takes kernels of 3 x 3 and 5 x 5, not {weight.shape[2]} x {weight.shape[3]}"
    if x.shape[1] < VECTOR:
        return f"it takes {VECTOR} channels and more, not {x.shape[1]}"
    return None if x.stride(1) == 1 else "it takes channels_last maps"


def transform_weight(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight (K, C, r, r) and bias (K,) in the form that :func:`winograd_convolution` takes; the transform is made in float64.

    Returns:
        (64, C, K') and (K',), K' = K rounded up to a multiple of 16, float32.
    """
    channels, _, size, _ = weight.shape
    g = _evaluation(size, weight.device)
    points = torch.einsum("ia,kcab,jb->ijck", g, weight.double(), g).flatten(0, 1)  # (64, C, K)
    padding = (0, -channels % VECTOR)
    bias = weight.new_zeros(channels) if bias is None else bias
    return F.pad(points, padding).float().contiguous(), F.pad(bias.float(), padding).contiguous()


def _evaluation(size: int, device: torch.device) -> Tensor:
    """G, (8, size) in float64."""
    rows = []
    for j, point in enumerate(POINTS):
        scale = 1.0
        for k, other in enumerate(POINTS):
            scale *= point - other if k != j else 1.0
        rows.append([point**t / scale for t in range(size)])
    return torch.tensor([*rows, [0.0] * (size - 1) + [1.0]], dtype=torch.float64, device=device)


def winograd_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weights of :func:`winograd_convolution` with kernels of 5 x 5.

    The convolution is linear in g, so that its transpose is the gradient: with D a tile of ``grad`` and d one of ``x``, summed
    over all tiles,

        grad_g = G' [(A D A') * (B' d B)] G

    Args:
        grad: (N, K, H, W), float32 on the CPU, channels_last or a slice of channels of such a map, K >= 16.
        x: (N, C, H, W), the same, C >= 16.
    Returns:
        (K, C, 5, 5), float32; G is applied in float64.
    Raises:
        RuntimeError: shape, dtype or layout.
    Memory: scratch of about 1 MiB and 256 C K' bytes for each thread. Deterministic: yes, for a number of threads.
    """
    size = KERNEL_SIZES[-1]
    sums = torch.ops.pyindexnet.winograd_weight_gradient(grad, x, size)
    points = len(POINTS) + 1
    sums = sums.view(points, points, x.shape[1], -1)[..., : grad.shape[1]]
    g = _evaluation(size, x.device)
    return torch.einsum("ia,ijck,jb->kcab", g, sums.double(), g).float()


def winograd_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    channels: int,
    kernel_size: int,
    more: Tensor | None = None,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> Tensor:
    """clamp(conv2d(cat(x, more)) + bias, low, high) at stride 1, the size kept by zero padding. Inference: no gradients.

    Args:
        x: (N, C, H, W), float32 or bfloat16 (arithmetic in float32) on the CPU, channels_last (or a slice of channels of such a
            map), C >= 16; see :func:`why_not`.
        weight, bias: of :func:`transform_weight`.
        channels: of the output.
        kernel_size: 3 or 5.
        more: (N, C', H, W), more input channels as if they were concatenated, like ``x``.
        low, high: bounds of the output; 0 and infinity are a ReLU.
    Returns:
        (N, channels, H, W), dtype of ``x``, channels_last.
    Raises:
        RuntimeError: shape, dtype or layout.
    Memory: scratch of about 1 MiB for each thread. Deterministic: yes.
    """
    more = x[:, :0] if more is None else more
    return torch.ops.pyindexnet.winograd_convolution(x, more, weight, bias, channels, kernel_size, low, high)
