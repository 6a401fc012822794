# SPDX-License-Identifier: Apache-2.0
"""The kernels of batch norm with an activation against float64, judged by PyTorch's own in the same dtype."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.ops.batch_norm import (
    batch_norm_activation,
    batch_norm_activation_backward,
    batch_norm_statistics,
    statistics_dtype,
    why_not,
)
from pyindexnet.testing.parity import error, tolerance

EPS = 1e-5
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: Slope and bound.
ACTIVATIONS = {"none": (1.0, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "leaky": (0.01, math.inf)}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: With channels that fill vectors and that do not; the last ones in more than one item.
SHAPES = [
    (2, 16, 5, 7),
    (3, 5, 9, 4),
    (2, 1, 33, 5),
    (1, 40, 1, 6),
    (4, 24, 3, 1),
    (5, 33, 1, 1),
    (2, 24, 90, 70),
    (1, 3, 280, 270),
]

reason = why_not(torch.zeros(1, 1, 1, 1))
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def parameters(channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias, so that every part of an activation is met."""
    rng = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, channels, generator=rng, dtype=torch.double)
    return weight * 2 + 1, bias * 2 + 1


def image(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return (x * 1.5 + 2).to(dtype).contiguous(memory_format=FORMATS[layout])


def formula(x: Tensor, weight: Tensor, bias: Tensor, slope: float, high: float, training: bool = True) -> Tensor:
    """In evaluation mode with mean 1 and variance 2."""
    running = (None, None) if training else (torch.full_like(bias, 1.0), torch.full_like(bias, 2.0))
    z = F.batch_norm(x, *running, weight, bias, training, eps=EPS)
    return z if slope == 1 else z.clamp(0, high) if slope == 0 else F.leaky_relu(z, slope)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x = image(shape, dtype, layout)
    gold = torch.var_mean(x.double(), (0, 2, 3), correction=0)[::-1]
    for found, exact in zip(batch_norm_statistics(x), gold, strict=True):
        assert found.dtype == statistics_dtype(x)
        assert error(found, exact) <= tolerance(exact, 0.0, x[:, 0].numel(), found.dtype)


@pytest.mark.parametrize("layout", FORMATS)
def test_large_mean(layout: str) -> None:
    """Nothing cancels: a sum of squares would have lost the variance."""
    x = image((4, 24, 60, 50), torch.float32, layout) + 4096
    exact = torch.var(x.double(), (0, 2, 3), correction=0)
    assert error(batch_norm_statistics(x)[1], exact) <= 1e-5 * exact.max()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parity(dtype: torch.dtype, shape: tuple[int, ...], layout: str, name: str, training: bool) -> None:
    slope, high = ACTIVATIONS[name]
    x, grad = image(shape, dtype, layout), image(shape, dtype, layout, seed=2)
    kind = statistics_dtype(x)
    weight, bias = (t.to(kind) for t in parameters(shape[1]))
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    gold_y = formula(*exact, slope, high, training)
    with torch.no_grad():  # which side of a kink a value falls on is not ours to decide
        z = formula(*exact, 1.0, math.inf, training)
        for kink in (0.0, high):
            grad[(z - kink).abs() < 1e-3] = 0
    gold = (gold_y, *torch.autograd.grad(gold_y, exact, grad.double()))

    same = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    same_y = formula(*same, slope, high, training)
    judges = (same_y, *torch.autograd.grad(same_y, same, grad))

    mean, var = batch_norm_statistics(x) if training else (torch.full_like(bias, 1.0), torch.full_like(bias, 2.0))
    arguments = (x, mean, var, weight, bias)
    options = {"eps": EPS, "slope": slope, "high": high}
    y = batch_norm_activation(*arguments, **options)
    found = (y, *batch_norm_activation_backward(grad, *arguments, **options, batch=training))
    assert y.is_contiguous(memory_format=FORMATS[layout])
    assert found[1].is_contiguous(memory_format=FORMATS[layout])
    for value, exact_value, judge in zip(found, gold, judges, strict=True):
        bound = tolerance(exact_value.detach(), error(judge, exact_value), x[:, 0].numel(), value.dtype)
        assert error(value, exact_value) <= bound


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(1, 32, 360, 376), (1, 33, 361, 375)], ids=["aligned", "odd"])
def test_large_outputs(shape: tuple[int, ...], layout: str) -> None:
    """Beyond 16 MiB the kernels write past the caches where vectors are aligned."""
    test_parity(torch.float32, shape, layout, "relu6", training=True)


@pytest.mark.parametrize("layout", FORMATS)
def test_gradient_of_any_layout(layout: str) -> None:
    """A slice of channels, as behind a concatenation, is read where it lies; all else is copied."""
    x, (weight, bias) = image((2, 24, 6, 5), torch.float32, layout), parameters(24)
    arguments = (x, *batch_norm_statistics(x), weight.float(), bias.float())
    whole = image((2, 40, 6, 5), torch.float32, layout, seed=2)
    for grad in (whole[:, 8:32], torch.randn(2, 24, 5, 6).mT, torch.ones(()).expand(x.shape), whole.flip(3)[:, :24]):
        dense = torch.empty_like(x).copy_(grad)
        found, wanted = (
            batch_norm_activation_backward(g, *arguments, eps=EPS, slope=0.0, high=6.0, batch=True) for g in (grad, dense)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("layout", FORMATS)
def test_does_not_depend_on_threads(layout: str) -> None:
    x, grad, (weight, bias) = (
        image((3, 48, 70, 50), torch.float32, layout),
        image((3, 48, 70, 50), torch.float32, layout, 2),
        parameters(48),
    )
    threads, seen = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            statistics = batch_norm_statistics(x)
            found = batch_norm_activation_backward(
                grad, x, *statistics, weight.float(), bias.float(), eps=EPS, slope=0.0, high=6.0, batch=True
            )
            seen.append((*statistics, *found))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_not_a_number_survives() -> None:
    x = image((2, 16, 4, 4), torch.float32, "channels_last")
    x[1, 3, 2, 1] = torch.nan
    y = batch_norm_activation(x, *torch.zeros(4, 16).add(1).unbind(), eps=EPS, slope=0.0, high=6.0)
    assert y.isnan().nonzero().tolist() == [[1, 3, 2, 1]]


@pytest.mark.parametrize("layout", FORMATS)
def test_registration(layout: str) -> None:
    x, (weight, bias) = image((2, 24, 6, 5), torch.float32, layout), parameters(24)
    arguments = (x, *batch_norm_statistics(x), weight.float(), bias.float(), EPS, 0.0, 6.0)
    for op, given in (
        (torch.ops.pyindexnet.batch_norm_statistics, (x,)),
        (torch.ops.pyindexnet.batch_norm_activation, arguments),
        (torch.ops.pyindexnet.batch_norm_activation_backward, (x, *arguments, True)),
    ):
        torch.library.opcheck(op.default, given, test_utils=("test_schema", "test_faketensor"))


def test_why_not() -> None:
    x = torch.zeros(2, 16, 4, 4)
    assert why_not(x) is None
    for part, given in (
        ("torch.int64 on cpu", x.long()),
        ("torch.float32 on meta", x.to("meta")),
        ("not (2, 16, 4)", x[..., 0]),
        ("not (0, 16, 4, 4)", x[:0]),
        ("contiguous and channels_last", x[..., ::2]),
    ):
        found = why_not(given)
        assert found is not None
        assert part in found


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 16, 4), "grad must have 4 dimensions, got 3"),
        (0, torch.zeros(2, 16, 4, 5), r"grad must be \(2, 16, 4, 4\), got \(2, 16, 4, 5\)"),
        (0, torch.zeros(2, 16, 4, 4).double(), "grad must have the dtype and device of x"),
        (0, torch.zeros(2, 16, 4, 8)[..., ::2], "grad must have the layout of x"),
        (1, torch.zeros(2, 16, 4), "x must have 4 dimensions, got 3"),
        (1, torch.zeros(2, 16, 4, 4).long(), "x must be float64, float32, float16 or bfloat16"),
        (1, torch.zeros(2, 16, 4, 8)[..., ::2], "x must be contiguous or channels_last within an image"),
        (1, torch.zeros(0, 16, 4, 4), "x must not be empty"),
        (2, torch.zeros(15), "mean must be 16 contiguous float32, got 15"),
        (3, torch.zeros(16).double(), "var must be 16 contiguous float32"),
        (4, torch.zeros(32)[::2], "weight must be 16 contiguous float32"),
    ],
)
def test_errors(position: int, value: Tensor, message: str) -> None:
    """C++ checks all that memory safety needs."""
    x = torch.zeros(2, 16, 4, 4)
    arguments: list[object] = [x, x, *torch.ones(4, 16).unbind(), EPS, 0.0, 6.0, True]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=f"batch_norm_activation_backward: {message}"):
        torch.ops.pyindexnet.batch_norm_activation_backward(*arguments)
