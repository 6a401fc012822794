# SPDX-License-Identifier: Apache-2.0
"""Losses against those of the published training code, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyindexnet.matting.losses import (
    CONVENTIONS,
    Convention,
    alpha_loss,
    composition_loss,
    gradient_loss,
    indexnet_loss,
    laplacian_loss,
    multiscale_alpha_loss,
    tmfnet_loss,
)
from tests.golden import load_case
from tests.nn.golden_module import check


def with_gradients(prediction: Tensor, losses: dict[str, Callable[[Tensor], Tensor]], prefix: str) -> dict[str, Tensor]:
    """Value and gradient of each loss by the names of the arrays."""
    results = {}
    for name, loss in losses.items():
        leaf = prediction.clone().requires_grad_()
        value = loss(leaf)
        results[f"output_{name}"] = value.detach()
        results[f"{prefix}_{name}"] = torch.autograd.grad(value, leaf)[0]
    return results


def test_indexnet_and_a2u() -> None:
    case = load_case("losses", "indexnet_a2u_weighted_loss_normal")

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        alpha, mask, *colours = case.tensor("input_target").to(dtype).split([1, 1, 3, 3, 3], dim=1)
        foreground, background, image = colours

        def loss(weight: float, convention: str) -> Callable[[Tensor], Tensor]:
            return lambda p: indexnet_loss(
                p, alpha, image, foreground, background, mask=mask, alpha_weight=weight, convention=convention
            )

        losses = {f"{c}_wl{w}": loss(w, c) for c in ("indexnet", "a2u") for w in (0.0, 0.5, 1.0)}
        return with_gradients(case.tensor("input_pred").to(dtype), losses, "grad")

    check(case, results)


def test_tmfnet() -> None:
    case = load_case("losses", "tmf_training_losses")
    absolute = Convention(epsilon=1e-12, per_sample=False)

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        alpha, mask, foreground, background, image = (
            case.tensor(f"input_{n}").to(dtype) for n in ("alpha", "unknown", "fg", "bg", "merged")
        )
        rest = (image, foreground, background)
        losses: dict[str, Callable[[Tensor], Tensor]] = {
            "charbonnier_alpha": lambda p: 0.5 * alpha_loss(p, alpha, mask=mask, convention="tmfnet"),
            "charbonnier_comp": lambda p: 1.5 * composition_loss(p, *rest, mask=mask, convention="tmfnet"),
            "laplacian": lambda p: 0.2 * laplacian_loss(p, alpha, mask=mask),
            "laplacian_noweight": lambda p: 0.2 * laplacian_loss(p, alpha),
            "gradient": lambda p: gradient_loss(p, alpha, mask=mask, operator="sobel"),
            "l1": lambda p: alpha_loss(p, alpha, mask=mask, convention=absolute),
        }
        return with_gradients(case.tensor("input_pred").to(dtype), losses, "grad")

    check(case, results)

    inputs = [case.tensor(f"input_{n}") for n in ("pred", "alpha", "merged", "fg", "bg")]
    total = sum(case.arrays[f"output_{n}"] for n in ("charbonnier_alpha", "charbonnier_comp", "laplacian"))
    assert abs(float(tmfnet_loss(*inputs, mask=case.tensor("input_unknown"))) - total) <= 10 * torch.finfo().eps * total


def test_lsanet() -> None:
    # The other arrays of the case are losses that the published code defines and never trains with.
    names = ("gen_simple_alpha_loss", "my_alpha_loss", "my_alpha_loss_multiscale", "gen_loss_alpha", "gen_loss_comp")
    case = load_case("losses", "lsa_losses")
    used = {f"{prefix}_{name}" for prefix in ("output", "grad_pred") for name in names}
    case = replace(case, arrays={k: v for k, v in case.arrays.items() if k.startswith("input") or k in used})
    simple = Convention(per_sample=False, area_offset=1, known_floor=True)
    general = replace(simple, known_floor=False)
    colours = replace(general, epsilon=1e-6 / 255, colours="mean")  # colours of 0 to 255 there
    truncated = replace(CONVENTIONS["lsanet"], epsilon=1e-2, known_floor=True)

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        alpha, foreground, background, image = (
            case.tensor(f"input_{n}").to(dtype) / 255 for n in ("alpha", "fg", "bg", "image")
        )
        mask = case.tensor("input_trimap") == 128
        losses: dict[str, Callable[[Tensor], Tensor]] = {
            "gen_simple_alpha_loss": lambda p: alpha_loss(p, alpha, mask=mask, convention=simple),
            "my_alpha_loss": lambda p: alpha_loss(p, alpha, mask=mask, convention=truncated),
            "my_alpha_loss_multiscale": lambda p: multiscale_alpha_loss(p, alpha, mask=mask, convention="lsanet"),
            "gen_loss_alpha": lambda p: alpha_loss(p, alpha, mask=mask, convention=general),
            "gen_loss_comp": lambda p: composition_loss(p, image, foreground, background, mask=mask, convention=colours),
        }
        return with_gradients(case.tensor("input_pred").to(dtype), losses, "grad_pred")

    check(case, results)
