# SPDX-License-Identifier: Apache-2.0
"""What a module is made of, for the recognisers: its layers in the order of registration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
)
POOLS = (nn.AvgPool2d, nn.MaxPool2d)
#: What an operator does itself: without parameters, left out of the chain of layers.
ABSORBED = (nn.Unfold, nn.PixelShuffle, nn.Upsample, nn.UpsamplingNearest2d, nn.Softmax, nn.Softmax2d, nn.Sigmoid, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """A module without children, and its path."""

    path: str
    module: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def layers(module: nn.Module) -> list[Layer] | None:
    """Layers of a module in the order of registration; None where it has parameters or buffers outside known layers."""
    found = [Layer(path, m) for path, m in module.named_modules() if not any(m.children()) and path]
    known = (nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS, *POOLS, *ABSORBED)
    # exact types: a subclass, or a parametrized layer, computes something else
    if not found or any(type(layer.module) not in known for layer in found):
        return None
    owned = {id(t) for layer in found for t in (*layer.parameters(), *layer.buffers())}
    return found if all(id(t) in owned for t in (*module.parameters(), *module.buffers())) else None


def of_type(found: list[Layer], *types: type) -> list[Layer]:
    return [layer for layer in found if type(layer.module) in types]


def plain_norm(norm: Layer) -> bool:
    """A batch norm that can be merged with its like."""
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def same(group: list[Layer], *attributes: str) -> bool:
    """Whether the layers agree in these attributes."""
    return all(getattr(layer, a) == getattr(group[0], a) for layer in group for a in attributes)


CONV_ATTRIBUTES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def alike(group: list[Layer]) -> bool:
    """Whether layers at the same place of parallel columns can be one."""
    kind = type(group[0].module)
    if any(type(layer.module) is not kind for layer in group):
        return False
    if kind is nn.Conv2d:
        biased = {layer.bias is not None for layer in group}
        return len(biased) == 1 and same(group, *CONV_ATTRIBUTES) and group[0].padding_mode == "zeros"
    if kind is nn.BatchNorm2d:
        return same(group, "num_features", "eps", "momentum") and all(map(plain_norm, group))
    return kind is not nn.PReLU and len({repr(layer.module) for layer in group}) == 1  # of PReLU, each has weights


def required_inputs(module: nn.Module) -> int | None:
    """How many arguments ``forward`` must get; None where that does not show."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def accepts(module: nn.Module, count: int) -> bool:
    """Whether ``forward`` takes this number of positional arguments."""
    try:
        inspect.signature(module.forward).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def integers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Plain attributes, of a module and what is in it, that hold an integer or a sequence of them."""
    for m in module.modules():
        for name, value in vars(m).items():
            if name == "training" or name.startswith("_"):
                continue
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            if numbers and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
                yield name, value
