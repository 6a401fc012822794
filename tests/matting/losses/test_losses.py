# SPDX-License-Identifier: Apache-2.0
"""Losses: formulas, empty masks, gradients, precision, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.matting import losses
from pyindexnet.matting.losses import Convention
from tests.matting.losses import oracles

SHAPES = [(1, 16, 16), (3, 35, 41), (2, 20, 47)]


def sample(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arguments of all losses, by name. The last sample has no pixel in its mask."""
    n, h, w = shape
    rng = torch.Generator().manual_seed(h)

    def uniform(channels: int) -> Tensor:
        return torch.rand(n, channels, h, w, generator=rng, dtype=torch.float64).to(dtype)

    mask = torch.rand(n, 1, h, w, generator=rng) < 0.4
    if n > 1:
        mask[-1] = False
    target = (1.5 * uniform(1) - 0.25).clamp(0, 1)
    prediction = (target.double() + 0.3 * torch.randn(n, 1, h, w, generator=rng, dtype=torch.float64)).to(dtype)
    return {
        "prediction": prediction,
        "target": target,
        "mask": mask,
        "image": uniform(3),
        "foreground": uniform(3),
        "background": uniform(3),
    }


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "alpha_loss": ("target",),
    "composition_loss": ("image", "foreground", "background"),
    "multiscale_alpha_loss": ("target",),
    "region_alpha_loss": ("target",),
    "laplacian_loss": ("target",),
    "gradient_loss": ("target",),
    "region_gradient_loss": ("target",),
    "affinity_loss": ("image",),
    "indexnet_loss": ("target", "image", "foreground", "background"),
    "tmfnet_loss": ("target", "image", "foreground", "background"),
    "rmat_loss": ("target", "image", "foreground", "background"),
    "pspm_loss": ("target", "image"),
}
CONVENTIONAL = ("alpha_loss", "composition_loss", "multiscale_alpha_loss", "indexnet_loss")
OPTIONS: dict[str, dict[str, Any]] = {
    "laplacian_loss": {"levels": 3},
    "affinity_loss": {"size": (4, 4)},
    "pspm_loss": {"size": (4, 4)},
}


def call(name: str, arguments: dict[str, Tensor], **options: Any) -> Tensor:
    function: Callable[..., Tensor] = getattr(losses, name)
    rest = [arguments[a] for a in ARGUMENTS[name]]
    chosen = OPTIONS.get(name, {}) | options
    return function(arguments["prediction"], *rest, **({"mask": arguments["mask"]} | chosen))


def close(value: Tensor, expected: float, terms: int) -> bool:
    """Within the rounding of ``terms`` float64 additions."""
    return abs(float(value) - expected) <= 2 * terms * torch.finfo(torch.float64).eps * max(abs(expected), 1)


def test_every_loss_is_listed() -> None:
    public = {name for name in losses.__all__ if name.endswith("_loss")}
    assert public == ARGUMENTS.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alpha_and_composition(shape: tuple[int, int, int]) -> None:
    x = sample(shape)
    p, t, m = (x[k].numpy() for k in ("prediction", "target", "mask"))
    assert close(call("alpha_loss", x), oracles.charbonnier(p, t, m, 1e-6), p.size)
    composite = p * x["foreground"].numpy() + (1 - p) * x["background"].numpy()
    expected = oracles.charbonnier(composite, x["image"].numpy(), m, 1e-6)
    assert close(call("composition_loss", x), expected, 3 * p.size)
    assert close(call("composition_loss", x, convention="tmfnet"), expected / 3, 3 * p.size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multiscale(shape: tuple[int, int, int]) -> None:
    x = sample(shape)
    x["mask"] = torch.ones_like(x["mask"])
    expected = 0.0
    for level in range(5):
        k = 2**level
        rows, columns = shape[1] // k * k, shape[2] // k * k
        p, t = (
            x[name].numpy()[..., :rows, :columns].reshape(shape[0], 1, rows // k, k, columns // k, k).mean((3, 5))
            for name in ("prediction", "target")
        )
        expected += oracles.charbonnier(p, t, np.ones(p.shape, bool), 1e-6) / k
    assert close(call("multiscale_alpha_loss", x), expected, 5 * x["mask"].numel())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels", [1, 3])
def test_laplacian(levels: int, shape: tuple[int, int, int]) -> None:
    x = sample(shape)
    p, t, m = (x[k].numpy() for k in ("prediction", "target", "mask"))
    value = call("laplacian_loss", x, levels=levels)
    assert close(value, oracles.laplacian(p, t, m, levels), 50 * p.size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", ["difference", "sobel"])
def test_gradient_and_penalty(operator: str, shape: tuple[int, int, int]) -> None:
    x = sample(shape)
    p, t, m = (x[k].numpy() for k in ("prediction", "target", "mask"))
    plain = oracles.gradient(p - t, m, operator)
    assert close(call("gradient_loss", x, operator=operator), plain, 20 * p.size)
    expected = plain + 0.01 * oracles.gradient(p, m, operator)
    assert close(call("gradient_loss", x, operator=operator, penalty=0.01), expected, 20 * p.size)


def test_regions() -> None:
    x = sample(SHAPES[1])
    p, t, m = (x[k].numpy() for k in ("prediction", "target", "mask"))
    expected = oracles.gradient(p - t, m, "sobel") + 0.5 * oracles.gradient(p - t, ~m, "sobel")
    assert close(call("region_gradient_loss", x), expected, 20 * p.size)
    expected = oracles.charbonnier(p, t, m, 1e-6) + 10 * oracles.charbonnier(p, t, np.ones_like(m), 1e-6)
    assert close(call("region_alpha_loss", x), expected, 20 * p.size)


def test_affinity_of_windows() -> None:
    # A map that is made of windows of one value has the affinities of the small map, whether windows are whole or not.
    x = sample((1, 6, 6))
    x["mask"][:] = True
    expected = float(call("affinity_loss", x, size=(6, 6)))
    large = {k: v.repeat_interleave(4, -1).repeat_interleave(4, -2) for k, v in x.items()}
    assert close(call("affinity_loss", large, size=(6, 6)), expected, 36 * 36)
    assert call("affinity_loss", large, size=(5, 5)) != call("affinity_loss", large, size=(6, 6))
    rows = F.adaptive_avg_pool2d(large["prediction"], (5, 5)), F.adaptive_avg_pool2d(large["image"], (5, 5))
    small = large | {"prediction": rows[0], "image": rows[1], "mask": torch.ones(1, 1, 5, 5)}
    assert close(call("affinity_loss", large, size=(5, 5)), float(call("affinity_loss", small, size=(5, 5))), 25 * 25)


def test_affinity() -> None:
    x = sample((2, 5, 6))
    x["mask"][:] = True
    expected = oracles.affinity(x["prediction"].numpy(), x["image"].numpy())
    assert close(call("affinity_loss", x, size=(5, 6)), expected, 30 * 30)
    # Pixels that the mask leaves out take no part.
    x["mask"][..., -1] = False
    without = oracles.affinity(x["prediction"].numpy()[..., :-1], x["image"].numpy()[..., :-1])
    same_scale = {k: v.clone() for k, v in x.items()}
    for name in ("prediction", "image"):  # the column that is left out holds the two extremes of none of the scales
        same_scale[name][..., -1] = same_scale[name][..., -2]
    assert close(call("affinity_loss", same_scale, size=(5, 6)), without, 30 * 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ARGUMENTS if name not in CONVENTIONAL]
    + [(name, {"convention": convention}) for name in CONVENTIONAL for convention in losses.CONVENTIONS],
    ids=str,
)
def test_no_unknown_pixel(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    # Flat and equal images too: roots and norms have no gradient at 0.
    empty = sample(SHAPES[1], dtype)
    flat = {k: torch.ones_like(v) for k, v in empty.items()}
    empty["mask"][:] = False
    for arguments in (empty, flat):
        arguments["prediction"].requires_grad_()
        value = call(name, arguments, **options)
        (grad_prediction,) = torch.autograd.grad(value, arguments["prediction"])
        assert value.isfinite()
        assert grad_prediction.isfinite().all()
    if name not in ("region_alpha_loss", "region_gradient_loss", "pspm_loss"):  # these count known pixels too
        assert float(call(name, empty, **options).detach()) == 0


@pytest.mark.parametrize("name", ["alpha_loss", "composition_loss", "laplacian_loss", "gradient_loss"])
def test_values_outside_the_mask_are_ignored(name: str) -> None:
    x = sample(SHAPES[0])
    if name in ("laplacian_loss", "gradient_loss"):  # neighbours take part: leave out what is far away
        x["mask"][..., 8:] = False
        outside = x["prediction"].new_tensor(np.arange(16) >= 12 + 4 * (name == "laplacian_loss")).bool()
        outside = outside.expand_as(x["prediction"])
    else:
        outside = ~x["mask"]
    before = call(name, x)
    x["prediction"] = x["prediction"].masked_fill(outside, torch.nan).requires_grad_()
    value = call(name, x)
    assert float(value.detach()) == float(before)
    assert torch.autograd.grad(value, x["prediction"])[0].isfinite().all()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_gradcheck(name: str) -> None:
    x = sample((2, 34, 33))
    # The losses of absolute values have kinks, which random values stay away from.
    torch.autograd.gradcheck(lambda p: call(name, x | {"prediction": p}), (x["prediction"].requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_half_types_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x = sample(SHAPES[1], dtype)
    rounded = {k: v if k == "mask" else v.float() for k, v in x.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(name, x)
    assert value.dtype == torch.float32
    assert float(value) == float(call(name, rounded))


def test_truncation() -> None:
    # Overshooting 1 where the target is 1, and 0 where it is 0, costs nothing; overshooting a fraction does.
    target = torch.tensor([1.0, 0.9995, 0.0, 0.5, 1.0]).view(1, 1, 1, 5)
    prediction = torch.tensor([1.2, 1.2, -0.2, 1.2, 0.8]).view(1, 1, 1, 5).requires_grad_()
    rule = Convention(truncation=1e-3)
    (grad_prediction,) = torch.autograd.grad(losses.alpha_loss(prediction, target, convention=rule), prediction)
    assert [bool(g) for g in grad_prediction.flatten()] == [False, False, False, True, True]


def test_compiles_without_breaks() -> None:
    x = sample((2, 48, 48), torch.float32)
    inputs = [x[k] for k in ("prediction", "target", "image", "foreground", "background")]
    compiled = torch.compile(losses.tmfnet_loss, fullgraph=True, backend="eager")
    assert float(compiled(*inputs, mask=x["mask"])) == pytest.approx(float(losses.tmfnet_loss(*inputs, mask=x["mask"])))


def test_empty_batch() -> None:
    x = {k: v[:0] for k, v in sample(SHAPES[1]).items()}
    for name in ARGUMENTS:
        assert float(call(name, x)) == 0, name


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if not n.endswith(("indexnet_loss", "tmfnet_loss", "rmat_loss"))])
def test_errors(name: str) -> None:
    x = sample(SHAPES[1])
    owner = "alpha_loss" if name in ("region_alpha_loss", "pspm_loss") else name
    other = ARGUMENTS[name][0]
    with pytest.raises(ValueError, match=rf"^{owner}: prediction must be \(N, 1, H, W\), got \(3, 3, 35, 41\)"):
        call(name, x | {"prediction": x["image"]})
    with pytest.raises(TypeError, match=f"^{owner}: prediction must be floating, got torch.int64"):
        call(name, x | {"prediction": x["prediction"].long()})
    with pytest.raises(ValueError, match=rf"^{owner}: mask must be \(3, 1, 35, 41\), got \(3, 1, 35, 40\)"):
        call(name, x, mask=x["mask"][..., :-1])
    with pytest.raises(TypeError, match=f"^{owner}: mask must be bool or floating, got torch.uint8"):
        call(name, x, mask=x["mask"].byte())
    with pytest.raises(ValueError, match=rf"^{owner}: {other} must be \(3, \d, 35, 41\), got \(3, \d, 35, 40\)"):
        call(name, x | {other: x[other][..., :-1]})
    with pytest.raises(TypeError, match=f"^{owner}: {other} must be floating, got torch.uint8"):
        call(name, x | {other: x[other].byte()})


def test_errors_of_options() -> None:
    x = sample(SHAPES[1])
    with pytest.raises(ValueError, match="^alpha_loss: convention must be one of 'paper', .*, got 'gca'"):
        call("alpha_loss", x, convention="gca")
    with pytest.raises(ValueError, match="^gradient_loss: operator must be one of 'difference', 'sobel', got 'scharr'"):
        call("gradient_loss", x, operator="scharr")
    with pytest.raises(ValueError, match="^gradient_loss: penalty must be 0 or more, got -1"):
        call("gradient_loss", x, penalty=-1)
    with pytest.raises(ValueError, match=r"^laplacian_loss: levels must be 1 or more .* got 6 with \(35, 41\)"):
        call("laplacian_loss", x, levels=6)
    with pytest.raises(ValueError, match=r"^multiscale_alpha_loss: levels must be 1 or more .* got 7 with \(35, 41\)"):
        call("multiscale_alpha_loss", x, levels=7)
    with pytest.raises(ValueError, match="^Convention: epsilon must be 1e-18 or more"):
        Convention(epsilon=0)
    with pytest.raises(ValueError, match="^Convention: area_offset must be 0 or more, got -1"):
        Convention(area_offset=-1)
    with pytest.raises(ValueError, match="^Convention: colours must be one of 'sum', 'mean', got 'max'"):
        Convention(colours="max")  # type: ignore[arg-type]
