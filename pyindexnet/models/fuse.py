# SPDX-License-Identifier: Apache-2.0
"""A copy of a network for inference: what a deployed network computes at each call is computed once."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.nn.fused_conv import FusedConv, fold_unit
from pyindexnet.nn.graphed import GraphedModule
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork
from pyindexnet.nn.inplace_abn import revert_inplace_abn

_ACTIVATIONS = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU)


@torch.inference_mode(False)
@torch.no_grad()
def fuse(model: nn.Module, *, compile: bool = False, cuda_graph: bool = False) -> nn.Module:
    """A copy for inference: the same function with fewer passes over memory; every registered model has it as a method.

    Batch norms are folded into the convolutions before them. Activations and residual sums are the last step of a convolution
    where PyTorch offers it: on a CPU, through oneDNN, see :class:`~pyindexnet.nn.FusedConv`. Weights and maps are
    channels_last. Outputs differ from those of ``model.eval()`` by rounding alone. The copy can be converted, as in
    ``model.fuse().to(torch.bfloat16)``, ``.half()`` or ``.cuda()``; in this order, so that weights are rounded once.

    Args:
        model: any network made of this package's modules, in any mode; it stays as it is.
        compile: return ``torch.compile`` of the copy for fixed sizes, with constants folded (Inductor's freezing); to be called
            under ``torch.no_grad()`` or ``torch.inference_mode()``. In another dtype: ``fuse(fuse(model).to(dtype),
            compile=True)``; what is fused stays as it is.
        cuda_graph: return the copy as a :class:`~pyindexnet.nn.GraphedModule`, which runs on CUDA devices alone. It can be
            converted too: ``fuse(model, cuda_graph=True).half().cuda()``.
    Returns:
        The copy, in evaluation mode, its parameters without gradients. It cannot be trained: its batch norms are gone.
    Raises:
        ValueError: a batch norm that keeps no running statistics; both ``compile`` and ``cuda_graph``.
    """
    if compile and cuda_graph:
        raise ValueError("fuse: compile and cuda_graph must not both be given, got compile=True, cuda_graph=True")
    model = revert_inplace_abn(copy.deepcopy(model)).eval().requires_grad_(False)
    model = _fused(model, {}).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compile:
        return cast(nn.Module, torch.compile(model, dynamic=False, options={"freezing": True}))
    return GraphedModule(model) if cuda_graph else model


def _fused(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """What takes the place of ``module``, whose submodules are replaced; ``done``: of modules seen before."""
    if module in done:
        return done[module]
    done[module] = module
    if isinstance(module, DepthwiseIndexNetwork) and module.shared:
        if module.hidden is not None:
            fold_unit(module.hidden)  # its weights are repeated for every channel
    elif isinstance(module, ConvBNAct):
        done[module] = FusedConv(module.conv, module.bn, module.act)
    elif isinstance(module, nn.Conv2d):
        done[module] = FusedConv(module)
    else:
        join = getattr(module, "join_activation", None)  # a module whose last activation comes after a residual sum has it
        if join is not None:
            join()
        if isinstance(module, nn.Sequential):
            _join_activations(module)
        for name, child in module.named_children():
            setattr(module, name, _fused(child, done))
    return done[module]


def _join_activations(sequence: nn.Sequential) -> None:
    """Put each activation that follows a convolution into it; the positions, and the names with them, stay."""
    for i, (first, second) in enumerate(zip(sequence, list(sequence)[1:], strict=False)):
        if isinstance(first, nn.Conv2d) and isinstance(second, _ACTIVATIONS):
            sequence[i], sequence[i + 1] = FusedConv(first, None, second), nn.Identity()
