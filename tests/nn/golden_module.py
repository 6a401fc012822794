# SPDX-License-Identifier: Apache-2.0
"""Comparing a module with the arrays of a published one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyindexnet.models.checkpoints import KeyMap, merge_columns, split_columns
from tests.golden import GoldenCase

#: (module, tensors of the case) -> results by array name, and the losses' total to differentiate
Run = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]


def load_published(module: nn.Module, keys: KeyMap, case: GoldenCase) -> nn.Module:
    """Give ``module`` (called ``m`` in ``keys``) the weights of the case (called ``p`` there); evaluation mode."""
    state = {f"p.{key}": t for key, t in case.tensors("weight").items()}
    module.load_state_dict({key.removeprefix("m."): t for key, t in merge_columns(keys, state).items()})
    return module.eval()


def parameter_gradients(module: nn.Module, keys: KeyMap, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Gradients of the parameters by the names of the case's arrays."""
    by_key = {f"m.{key}": g for (key, _), g in zip(module.named_parameters(), grads, strict=True)}
    return {f"grad_weight/{key.removeprefix('p.')}": t for key, t in split_columns(keys, by_key).items()}


def check(case: GoldenCase, results: Callable[[torch.dtype], dict[str, Tensor]]) -> None:
    """Compare what ``results`` computes in float64 with every output and gradient of the case.

    These cases store no noise floor: it is the distance of our own float32 results from our float64 ones, and one rounding.
    That of a single element, which is a small number by chance, is the largest of its layer.
    """
    exact, rounded = results(torch.float64), results(torch.float32)
    stored = {key for key in case.arrays if key.startswith(("output", "grad"))}
    assert exact.keys() == stored
    floors = {
        key: (rounded[key] - exact[key]).abs().max() + torch.finfo(torch.float32).eps * case.tensor(key).abs().max()
        for key in stored
    }
    for key in stored:
        golden = case.tensor(key).double()
        assert exact[key].shape == golden.shape, key
        layer = key.rpartition(".")[0]
        like = [k for k in stored if layer and k.startswith(f"{layer}.")] if golden.numel() == 1 else [key]
        assert (exact[key] - golden).abs().max() <= 10 * max(floors[k] for k in like or [key]), key
