# SPDX-License-Identifier: Apache-2.0
"""CARAFE against the published module and by hand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.nn import CARAFE, CARAFEDownsample
from tests.golden import load_case
from tests.nn.golden_module import check, load_published, parameter_gradients

GOLDENS = ("carafepack_k5_g1",)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    case = load_case("carafe", name)
    given = case.info["constructor"]
    keys = {
        f"m.{ours}.{leaf}": f"p.{name}.{leaf}"
        for ours, name in (("compress", "channel_compressor"), ("predict", "content_encoder"))
        for leaf in ("weight", "bias")
    }

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        module = CARAFE(
            given["channels"],
            scale=given["scale_factor"],
            kernel_size=given["up_kernel"],
            groups=given["up_group"],
            compressed_channels=given["compressed_channels"],
            encoder_kernel_size=given["encoder_kernel"],
            encoder_dilation=given["encoder_dilation"],
        )
        load_published(module, keys, case).to(dtype)
        x = case.tensor("input_x").to(dtype).requires_grad_()
        y = module(x)
        grads = torch.autograd.grad(y, [x, *module.parameters()], case.tensor("cotangent").to(dtype))
        mask = F.pixel_shuffle(module.logits(x), 2).softmax(1)
        outputs = {"output": y, "output_mask": mask, "grad_x": grads[0]}
        return outputs | parameter_gradients(module, keys, grads[1:])

    check(case, results)


def noisy(module: CARAFE | CARAFEDownsample) -> CARAFE | CARAFEDownsample:
    """With kernels that are far from a mean."""
    torch.nn.init.normal_(module.predict.weight)
    return module


@pytest.mark.parametrize("size", [(7, 10), (8, 11), (9, 9)], ids=str)
@pytest.mark.parametrize("compressed", [None, 3])
def test_upsampling_by_hand(compressed: int | None, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 5)
    module = noisy(CARAFE(4, kernel_size=3, groups=2, compressed_channels=compressed))
    with torch.no_grad():
        y = module(x, size)
        inner = x if module.compress is None else module.compress(x)
        logits = F.conv2d(F.pad(inner, (1, 2, 1, 2)), module.predict.weight, module.predict.bias)  # one row and column more
        weights = F.pixel_shuffle(logits, 2).unflatten(1, (2, 9)).softmax(2)
    assert y.shape == (1, 4, *size)
    padded = F.pad(x, (1, 2, 1, 2))
    for c in range(4):
        for i in range(size[0]):
            for j in range(size[1]):
                window = padded[0, c, i // 2 : i // 2 + 3, j // 2 : j // 2 + 3].flatten()
                torch.testing.assert_close(y[0, c, i, j], window @ weights[0, c // 2, :, i, j])


@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=str)
def test_downsampling_by_hand(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, *size)
    module = noisy(CARAFEDownsample(4, kernel_size=3, groups=2, compressed_channels=3))
    with torch.no_grad():
        y = module(x)
        weights = module.logits(x).unflatten(1, (2, 9)).softmax(2)
    assert y.shape == (1, 4, 3, 4)
    padded = F.pad(x, (1, 2, 1, 2))
    for c in range(4):
        for i in range(3):
            for j in range(4):
                window = padded[0, c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten()
                torch.testing.assert_close(y[0, c, i, j], window @ weights[0, c // 2, :, i, j])


def test_starts_from_the_mean_of_the_window() -> None:
    x = torch.full((1, 8, 5, 5), 3.0)
    up, down = CARAFE(8), CARAFEDownsample(8, kernel_size=3)
    torch.testing.assert_close(up(x)[:, :, 4:6, 4:6], x[:, :, :2, :2])
    torch.testing.assert_close(down(x)[:, :, 1:2, 1:2], x[:, :, :1, :1])


@pytest.mark.parametrize("module", [CARAFE, CARAFEDownsample])
def test_even_encoder(module: type[CARAFE | CARAFEDownsample]) -> None:
    with pytest.raises(ValueError, match=f"{module.__name__}: encoder_kernel_size must be an odd number from 1, got 4"):
        module(8, encoder_kernel_size=4)


@pytest.mark.parametrize("module", [CARAFE, CARAFEDownsample])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale must be one of 1, 2, 3, 4, got 5"),
        ({"scale": 2.0}, "scale must be one of 1, 2, 3, 4, got 2.0"),
        ({"scale": True}, "scale must be one of 1, 2, 3, 4, got True"),
        ({"kernel_size": 15}, "kernel_size must be one of 1, .*, got 15"),
        ({"groups": 3}, r"groups must divide channels \(8\), got 3"),
        ({"groups": 0}, "groups must be a whole number from 1, got 0"),
        ({"groups": True}, "groups must be a whole number from 1, got True"),
        ({"channels": 0}, "channels must be a whole number from 1, got 0"),
        ({"compressed_channels": 0}, "compressed_channels must be a whole number from 1, got 0"),
        ({"encoder_dilation": 0}, "encoder_dilation must be a whole number from 1, got 0"),
    ],
    ids=str,
)
def test_bad_arguments(module: type[CARAFE | CARAFEDownsample], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{module.__name__}: {message}"):
        module(**{"channels": 8, **options})


@pytest.mark.parametrize("module", [CARAFE, CARAFEDownsample])
def test_wrong_channels(module: type[CARAFE | CARAFEDownsample]) -> None:
    with pytest.raises(ValueError, match=rf"{module.__name__}: x must be \(N, 8, H, W\), got \(1, 6, 4, 4\)"):
        module(8)(torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("scale", [2, 3])
def test_every_size_that_is_promised(scale: int) -> None:
    """Between r (h - 1) and r (h + 1), forward and backward; no other."""
    module = CARAFE(8, scale=scale)
    x = torch.randn(2, 8, 13, 13, requires_grad=True)
    low, high = 12 * scale + 1, 14 * scale - 1
    for size in ((low, high), (high, low), (high, high)):
        y = module(x, size)
        assert y.shape == (2, 8, *size)
        assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    for size in ((low - 1, high), (high, high + 1)):
        want = rf"CARAFE: output_size must be within \({low}..{high}, {low}..{high}\), got \({size[0]}, {size[1]}\)"
        with pytest.raises(ValueError, match=want):
            module(x, size)


@pytest.mark.parametrize("module", [CARAFE, CARAFEDownsample])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 8, 4, 4, dtype=torch.double), "x must have the dtype of the module, torch.float32, got torch.float64"),
        (
            torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16),
            "x must have the dtype of the module, torch.float32, got torch.bfloat16",
        ),
        (torch.zeros(1, 8, 4, 4, dtype=torch.uint8), "x must be float64, float32, float16 or bfloat16, got torch.uint8"),
        (torch.zeros(1, 8, 0, 4), "x must have C, H and W of at least 1, got (1, 8, 0, 4)"),
        (np.zeros((1, 8, 4, 4)), "x must be a tensor, got ndarray"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_maps(module: type[CARAFE | CARAFEDownsample], x: Any, message: str) -> None:
    error = ValueError if isinstance(x, Tensor) else TypeError
    with pytest.raises(error, match=re.escape(f"{module.__name__}: {message}")):
        module(8)(x)


@pytest.mark.parametrize("module", [CARAFE, CARAFEDownsample])
def test_autocast_takes_what_it_casts(module: type[CARAFE | CARAFEDownsample]) -> None:
    net, x = module(8), torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(x.bfloat16()), net(x))
        with pytest.raises(ValueError, match="x must have the dtype of the module"):
            net(x.double())
    assert net(x[:0]).shape[0] == 0


@pytest.mark.parametrize("size", [27, (27.0, 27), (26,)], ids=str)
def test_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"CARAFE: output_size must be (H, W), got {size!r}")):
        CARAFE(8)(torch.zeros(1, 8, 13, 13), size)


@pytest.mark.parametrize("high", [26, 27])
def test_exports_with_a_size(high: int) -> None:
    class Resized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.carafe = CARAFE(8)

        def forward(self, x: Tensor, like: Tensor) -> Tensor:
            return self.carafe(x, (like.shape[2], like.shape[3]))

    given = torch.randn(2, 8, 13, 13), torch.zeros(2, 1, high, high)
    module = Resized().eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(module, given).module()(*given), module(*given))
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager", dynamic=True)(*given), module(*given))


def test_even_windows_are_for_downsampling() -> None:
    with pytest.raises(ValueError, match="CARAFE: kernel_size must be one of 1, 3, 5, 7, got 4"):
        CARAFE(8, kernel_size=4)
    assert CARAFEDownsample(8, kernel_size=4)(torch.zeros(1, 8, 6, 6)).shape == (1, 8, 3, 3)
