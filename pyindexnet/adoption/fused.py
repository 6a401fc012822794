# SPDX-License-Identifier: Apache-2.0
"""A fused module that lives on the parameters of another, and the merging of parallel layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What an instance may not take over from the original: its own forward, and the tables of nn.Module.
_OWN = frozenset(nn.Module().__dict__) | {"forward"}
_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class FusedModule(nn.Module):
    """Stands in the place of ``original``: children, parameters and buffers are the same objects under the same names.

    State dict keys, optimizers and code that reads the original's children and plain attributes go on working. The tables are
    shared, not copied, so that the original is up to date when it is put back.

    Args:
        original: the module whose place this takes.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        for table in _TABLES:
            self.__dict__[table] = original.__dict__[table]
        self.__dict__ |= {k: v for k, v in original.__dict__.items() if k not in _OWN}
        self.training = original.training
        self.__dict__["_original"] = (original,)  # in a tuple, so that it is no child

    @property
    def original(self) -> nn.Module:
        """The module that this one replaced, in the same mode."""
        (original,) = self.__dict__["_original"]
        original.training = self.training
        return original

    def layer(self, path: str) -> Any:
        """A child by its path, looked up at each call: copies and replicas of this module have their own."""
        return self.get_submodule(path)

    def extra_repr(self) -> str:
        return f"in place of {type(self.__dict__['_original'][0]).__name__}"


def merge(parts: Sequence[Tensor], *, dim: int = 0, groups: int = 1) -> Tensor:
    """Parallel columns as one along ``dim``: column after column, inside each of ``groups`` equal runs of channels."""
    if len(parts) == 1:
        return parts[0]
    if groups == 1:
        return torch.cat(tuple(parts), dim)
    return torch.stack([part.unflatten(dim, (groups, -1)) for part in parts], dim + 1).flatten(dim, dim + 2)


def split(merged: Tensor, count: int, *, dim: int = 0, groups: int = 1) -> tuple[Tensor, ...]:
    """Inverse of :func:`merge`."""
    if count == 1:
        return (merged,)
    if groups == 1:
        return merged.chunk(count, dim)
    return tuple(part.flatten(dim, dim + 1) for part in merged.unflatten(dim, (groups, count, -1)).unbind(dim + 1))


def convolve(x: Tensor, convs: Sequence[nn.Conv2d], *, separate: bool = False) -> Tensor:
    """The convolutions of parallel columns as one; channels are in the order of :func:`merge` with the convolutions' groups.

    Args:
        x: the input of all columns; or the merged inputs, one for each.
        convs: equal but for their parameters.
        separate: ``x`` is the merged inputs.
    """
    first = convs[0]
    weight = merge([c.weight for c in convs], groups=first.groups)
    bias = None if first.bias is None else merge([cast(Tensor, c.bias) for c in convs], groups=first.groups)
    groups = first.groups * (len(convs) if separate else 1)
    return F.conv2d(x, weight, bias, first.stride, first.padding, first.dilation, groups)


def normalize_columns(x: Tensor, norms: Sequence[nn.BatchNorm2d], groups: int) -> Tensor:
    """Batch norms of parallel columns as one, with the statistics that each would have kept."""
    count, first = len(norms), norms[0]
    if count == 1:
        return first(x)
    if any(norm.training != first.training for norm in norms):  # some are frozen: each by itself
        parts = split(x, count, dim=1, groups=groups)
        return merge([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=1, groups=groups)
    mean, var = (merge([getattr(norm, name) for norm in norms], groups=groups) for name in ("running_mean", "running_var"))
    weight, bias = (merge([getattr(norm, name) for norm in norms], groups=groups) for name in ("weight", "bias"))
    y = F.batch_norm(x, mean, var, weight, bias, first.training, cast(float, first.momentum), first.eps)
    if first.training:
        with torch.no_grad():
            for norm, m, v in zip(norms, split(mean, count, groups=groups), split(var, count, groups=groups), strict=True):
                cast(Tensor, norm.running_mean).copy_(m)
                cast(Tensor, norm.running_var).copy_(v)
                cast(Tensor, norm.num_batches_tracked).add_(1)
    return y
