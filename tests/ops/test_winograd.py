# SPDX-License-Identifier: Apache-2.0
"""Convolution by minimal filtering against the direct sum."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.ops import winograd
from pyindexnet.ops.winograd import transform_weight, why_not, winograd_convolution, winograd_weight_gradient
from pyindexnet.testing.parity import error, tolerance

pytestmark = pytest.mark.skipif(winograd._extension.MODULE is None, reason=winograd._extension.REASON)
#: channels, more channels, output channels, kernel, N, H, W
CASES = [
    (16, 0, 16, 5, 1, 8, 8),
    (16, 0, 1, 5, 2, 1, 1),
    (17, 0, 33, 5, 1, 13, 30),
    (24, 24, 16, 5, 1, 6, 61),
    (32, 16, 48, 5, 2, 9, 7),
    (40, 0, 1, 3, 1, 33, 17),
    (16, 19, 24, 3, 1, 7, 90),
]


def conv_case(channels: int, more: int, out: int, size: int, n: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, more, weight, bias."""
    torch.manual_seed(0)
    x, y = (torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last) for c in (channels, more))
    weight = torch.randn(out, channels + more, size, size) / ((channels + more) * size * size) ** 0.5
    return x, y, weight, torch.randn(out)


@pytest.mark.parametrize("bounds", [(-torch.inf, torch.inf), (0.0, 1.5)], ids=["linear", "clamped"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output(case: tuple[int, ...], bounds: tuple[float, float], dtype: torch.dtype) -> None:
    x, more, weight, bias = conv_case(*case)
    x, more, weight, bias = (t.to(dtype) for t in (x, more, weight, bias))
    both = torch.cat((x, more), 1)
    gold = F.conv2d(both.double(), weight.double(), bias.double(), padding=case[3] // 2).clamp(*bounds)
    judge = error(F.conv2d(both, weight, bias, padding=case[3] // 2).clamp(*bounds), gold)
    prepared = transform_weight(weight, bias)
    y = winograd_convolution(x, *prepared, channels=case[2], kernel_size=case[3], more=more, low=bounds[0], high=bounds[1])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, gold) <= tolerance(gold, judge, weight[0].numel(), dtype)


def test_slice_of_channels_and_nan() -> None:
    """Strides are taken as they are, and what is not a number spreads over the tiles that read it, no further."""
    x, _, weight, bias = conv_case(48, 0, 8, 5, 1, 24, 24)
    x, weight = x[:, 16:32], weight[:, 16:32]
    prepared = transform_weight(weight, bias)
    y = winograd_convolution(x, *prepared, channels=8, kernel_size=5)
    dense = winograd_convolution(
        x.contiguous(memory_format=torch.channels_last), *prepared, channels=8, kernel_size=5, low=-1e30
    )
    assert torch.equal(y, dense)
    x[0, 3, 20, 21] = torch.nan
    spoilt = winograd_convolution(x, *prepared, channels=8, kernel_size=5, low=0.0, high=6.0)
    assert spoilt[0, :, 18:23, 19:24].isnan().all()
    assert torch.equal(spoilt[0, :, :12], y[0, :, :12].clamp(0, 6))


def test_empty() -> None:
    x, _, weight, bias = conv_case(16, 0, 3, 5, 0, 8, 8)
    assert winograd_convolution(x, *transform_weight(weight, bias), channels=3, kernel_size=5).shape == (0, 3, 8, 8)


def test_fake() -> None:
    x, more, weight, bias = conv_case(16, 16, 3, 5, 1, 9, 8)
    arguments = (x, more, *transform_weight(weight, bias), 3, 5, 0.0, 6.0)
    torch.library.opcheck(
        torch.ops.pyindexnet.winograd_convolution.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("size", winograd.KERNEL_SIZES)
def test_identity_in_exact_arithmetic(size: int) -> None:
    """One dimension, in fractions: the points determine the product, so that any kernel and any input agree."""
    points = [Fraction(p) for p in winograd.POINTS]
    outputs = 9 - size
    d = [Fraction(3 * i * i - 7 * i + 2, 5) for i in range(8)]
    kernel = [Fraction(2 * i - 3, 7) for i in range(size)]

    def without(j: int | None) -> list[Fraction]:
        """Coefficients of prod (x - p_l) over l != j."""
        poly = [Fraction(1)]
        for l, p in enumerate(points):  # noqa: E741
            if l != j:
                poly = [a - p * b for a, b in itertools.zip_longest([Fraction(0), *poly], poly, fillvalue=Fraction(0))]
        return poly

    total = [Fraction(0)] * outputs
    for j, point in enumerate(points):
        scale = Fraction(1)
        for l, other in enumerate(points):  # noqa: E741
            scale *= point - other if l != j else 1
        value = sum(c * v for c, v in zip(without(j), d, strict=False))
        value *= sum(k * point**t for t, k in enumerate(kernel)) / scale
        total = [t + point**i * value for i, t in enumerate(total)]
    total[-1] += kernel[-1] * sum(c * v for c, v in zip(without(None), d, strict=True))
    assert total == [sum(k * d[i + t] for t, k in enumerate(kernel)) for i in range(outputs)]


def test_why_not() -> None:
    x, _, weight, _ = conv_case(16, 0, 3, 5, 1, 8, 8)
    assert why_not(x, weight) is None
    for reason, case in (
        ("float32 and bfloat16 on the CPU", (x.double(), weight)),
        ("3 x 3 and 5 x 5, not 4 x 4", (x, weight[:, :, :4, :4])),
        ("16 channels and more, not 8", (x[:, :8], weight)),
        ("channels_last", (x.contiguous(), weight)),
    ):
        found = why_not(*case)
        assert found is not None
        assert reason in found


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(1, 16, 8), "x must have 4 dimensions, got 3"),
        (0, torch.zeros(1, 16, 8, 8).double(), "x must be float32 or bfloat16"),
        (0, torch.zeros(1, 16, 8, 8), "x must be channels_last"),
        (1, torch.zeros(1, 0, 9, 8), "more must have the size of x, got 9"),
        (2, torch.zeros(64, 16, 8), "weight must be 16384 contiguous float32"),
        (3, torch.zeros(15), "bias must be 16 contiguous float32"),
        (4, 0, "channels must be at least 1, got 0"),
        (5, 4, "kernel_size must be 3 or 5, got 4"),
    ],
)
def test_errors(position: int, value: object, message: str) -> None:
    """C++ checks all that memory safety needs."""
    x, more, weight, bias = conv_case(16, 0, 3, 5, 1, 8, 8)
    arguments: list[object] = [x, more, *transform_weight(weight, bias), 3, 5, 0.0, 6.0]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=f"winograd_convolution: {message}"):
        torch.ops.pyindexnet.winograd_convolution(*arguments)


#: channels, output channels, N, H, W
GRADIENTS = [(16, 16, 1, 1, 1), (17, 33, 2, 13, 30), (24, 16, 1, 61, 6), (48, 40, 3, 7, 9)]


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda c: "x".join(map(str, c)))
def test_weight_gradient(case: tuple[int, ...]) -> None:
    channels, out, *size = case
    torch.manual_seed(0)
    n, h, w = size
    x, grad = (torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last) for c in (channels, out))
    shape = (out, channels, 5, 5)
    gold = torch.nn.grad.conv2d_weight(x.double(), shape, grad.double(), padding=2)
    judge = error(torch.nn.grad.conv2d_weight(x, shape, grad, padding=2), gold)
    found = winograd_weight_gradient(grad, x)
    products = 64 * n * -(-h // 4) * -(-w // 4)  # of the points of all tiles
    assert error(found, gold) <= tolerance(gold, judge, products, torch.float32)
    assert error(found, gold) <= 3e-5 * gold.abs().max()


def test_weight_gradient_of_slices() -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(2, 48, 9, 11).contiguous(memory_format=torch.channels_last)[:, 16:40] for _ in range(2))
    dense = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    assert torch.equal(winograd_weight_gradient(grad, x), winograd_weight_gradient(*dense))
    assert torch.equal(winograd_weight_gradient(grad[:0], x[:0]), torch.zeros(24, 24, 5, 5))
    torch.library.opcheck(
        torch.ops.pyindexnet.winograd_weight_gradient.default, (grad, x, 5), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(1, 16, 9, 8), "grad must have the size of x, got 9"),
        (0, torch.zeros(1, 16, 8, 8), "grad must be channels_last"),
        (0, torch.zeros(1, 8, 8, 8).contiguous(memory_format=torch.channels_last), "16 channels, got 16 and 8"),
        (1, torch.zeros(1, 16, 8), "x must have 4 dimensions, got 3"),
        (1, torch.zeros(1, 16, 8, 8).double(), "x must be float32"),
        (2, 3, "kernel_size must be 5, got 3"),
    ],
)
def test_weight_gradient_errors(position: int, value: object, message: str) -> None:
    x = torch.zeros(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    arguments: list[object] = [x, x, 5]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=f"winograd_weight_gradient: .*{message}"):
        torch.ops.pyindexnet.winograd_weight_gradient(*arguments)
