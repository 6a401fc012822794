# SPDX-License-Identifier: Apache-2.0
"""Checks that a whole network shares with the published one: output, gradients, the outputs of its modules, keys."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyindexnet.models import create_model, load_checkpoint, model_from_checkpoint
from pyindexnet.models.checkpoints import published_key_map, split_columns
from tests.golden import GoldenCase, load_case, published_state_dict
from tests.kinks import gradients_near
from tests.shared_data import shared_path

GROUP = "indexnet_full"
#: A module's name, and a function of its output.
Part = tuple[str, Callable[[Tensor], Tensor]]


def published(case_name: str, model_name: str, *, group: str = GROUP, **options: Any) -> tuple[GoldenCase, nn.Module]:
    """A case and our network with its weights, in evaluation mode."""
    model = create_model(model_name, **options)
    load_checkpoint(model, published_state_dict(group, case_name))
    return load_case(group, case_name), model.eval()


def check_output(case: GoldenCase, model: nn.Module, which: str) -> None:
    with torch.no_grad():
        error = (model(case.tensor(f"input_{which}")) - case.tensor(f"output_{which}")).abs().max()
    assert error <= case.tolerance(which)


def check_gradients(case: GoldenCase, model: nn.Module, which: str) -> None:
    """Of the input, and for case a the norm and the sum of every parameter's."""

    def run(net: nn.Module) -> tuple[Tensor, Tensor, list[Tensor]]:
        dtype = next(net.parameters()).dtype
        x = case.tensor(f"input_{which}").to(dtype).requires_grad_()
        parameters = list(net.parameters()) if which == "a" else []
        return net(x), case.tensor(f"cotangent_{which}").to(dtype), [x, *parameters]

    golden = case.tensor(f"grad_input_{which}")
    tolerance = case.relative_tolerance(which)
    grads = gradients_near(model, run, golden, tolerance * golden.std().item())
    assert (grads[0] - golden).abs().max() <= tolerance * golden.std()
    if which == "b":
        return
    names = [name for name, _ in model.named_parameters()]
    by_key = split_columns(key_map(model), dict(zip(names, grads[1:], strict=True)))
    norms, sums = case.info["param_grad_l2"], case.info["param_grad_sum"]
    assert by_key.keys() == norms.keys() == sums.keys()
    for key, norm in norms.items():
        grad = by_key[key]
        assert abs(grad.norm().item() - norm) <= tolerance * norm, key
        # what errors of that norm can add up to
        assert abs(grad.sum().item() - sums[key]) <= tolerance * norm * grad.numel() ** 0.5, key


def check_probes(case: GoldenCase, model: nn.Module, which: str, modules: dict[str, str | Part]) -> None:
    """Samples of what modules put out; ``modules`` has our name for each published one, and what to take of its output.

    The inside of a network has no stored noise floor: it is ten times the distance of our own float32 run from our float64 run.
    """
    x = case.tensor(f"input_{which}")
    rounded = _module_outputs(copy.deepcopy(model), x, modules)
    exact = _module_outputs(copy.deepcopy(model).double(), x.double(), modules)
    probes = case.tensors(f"probe{which}")
    assert probes.keys() == modules.keys()
    for key, golden in probes.items():
        assert list(exact[key].shape) == case.info["probes"][which + key]["shape"]
        values = exact[key].flatten()[case.tensor(f"probe{which}_index/{key}").long()]
        noise = (rounded[key] - exact[key]).abs().max()
        assert (values - golden).abs().max() <= 10 * noise, key


def _module_outputs(model: nn.Module, x: Tensor, modules: dict[str, str | Part]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for key, part in modules.items():
        name, take = (part, lambda out: out) if isinstance(part, str) else part
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, key=key, take=take: seen.__setitem__(key, take(out))
        )
    with torch.no_grad():
        model(x)
    return seen


def check_configuration(entry: dict[str, Any], model_name: str, **options: Any) -> None:
    """Parameter count of a published configuration; its state dict loads completely and tells which model it is of."""
    model = create_model(model_name, **options)
    assert sum(p.numel() for p in model.parameters()) == entry["n_parameters"]
    torch.manual_seed(0)
    state = {key: torch.rand(shape).to(getattr(torch, dtype)) for key, shape, dtype in entry["state_dict"]}
    load_checkpoint(model, state)
    loaded = split_columns(key_map(model), model.state_dict())
    assert loaded.keys() == state.keys()
    for key, want in state.items():
        assert torch.equal(loaded[key], want), key
    inferred = model_from_checkpoint({f"module.{key}": t for key, t in state.items()})
    assert type(inferred) is type(model)


def configuration(name: str) -> dict[str, Any]:
    return json.loads(shared_path("golden", "keys", "indexnet_repo_all_configs.keys.json").read_text())[name]


def key_map(model: nn.Module) -> dict[str, Any]:
    keys = published_key_map(model)
    assert keys is not None
    return keys
