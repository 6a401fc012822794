# SPDX-License-Identifier: Apache-2.0
"""Replaces the parts of a user's network that have a fused form; rebuilds whole networks of the published kinds."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyindexnet.adoption import dynamic_kernels, glf, index_blocks, trimap_pooling  # noqa: F401  they register their recognisers
from pyindexnet.adoption.fused import FusedModule
from pyindexnet.adoption.probe import NotThisKind, Probe, ProbeError
from pyindexnet.adoption.recognisers import RECOGNISERS
from pyindexnet.adoption.report import Entry, Report
from pyindexnet.models.checkpoints import CheckpointError, model_from_checkpoint, published_network
from pyindexnet.nn.batch_norm import HOOKS
from pyindexnet.testing.parity import error, tolerance

#: Tables of hooks that run when weights are saved and loaded; those of the layers go on running.
STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
#: Methods of nn.Module beside its forward; a fused module has PyTorch's own.
METHODS = (
    "train",
    "state_dict",
    "load_state_dict",
    "_load_from_state_dict",
    "_save_to_state_dict",
    "_apply",
    "get_extra_state",
    "set_extra_state",
)


def accelerate(module: nn.Module) -> Report:
    """Replace, in a network, the modules that have a fused form. In place.

        report = pyindexnet.accelerate(network)
        print(report)

    Recognised by their structure, whatever their names: index blocks in the published form (holistic, depthwise one to one and
    many to one), CARAFE packs in mmcv's form and other modules that predict kernels and apply them (CARAFE++ downsampling,
    involution), trimap-guided pooling and global-local fusion in the form of [TMFNet].

    Structure only suggests. A module is replaced where the fused one gives the same outputs, gradients and batch-norm
    statistics as the original, to float64 rounding, on random inputs and weights, at even and odd sizes, in training and
    evaluation mode; the report says so, and why another was left. The probe runs on copies, on the module's device. A module
    with hooks, or whose class has its own way to change modes or to save, load and convert weights, is left.

    A fused module holds the very children, parameters and buffers of the original under the same names: optimizers, state dicts
    and weights that are loaded later go on working.

    Args:
        module: any module; networks of this package have nothing to replace.
    Returns:
        What was replaced and left; ``report.undo()`` takes it back. ``report.module`` is the network: another object than
        ``module`` only where that was itself replaced.
    Raises:
        TypeError: not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"accelerate: module must be a torch.nn.Module, got {type(module).__name__}")
    # extra state may be anything
    known = published_network({key: t for key, t in module.state_dict().items() if isinstance(t, Tensor)})
    report = Report(module, network=None if known is None else known[0])
    decided: dict[nn.Module, FusedModule | None] = {}
    fused = _visit(module, "", report, decided)
    if fused is not None:
        report.module = fused
    return report


def rebuild(network: nn.Module, *inputs: Tensor) -> nn.Module:
    """The network of this package whose published weights these are, fused as a whole, with a copy of the weights.

    Where :func:`accelerate` keeps the network's own code between its modules, this has the pooling, the upsampling and the
    skips fused too. Parameters are copied: merged convolutions hold several.

    Args:
        network: a network whose state dict has the keys and shapes of a published one (``module.`` and the like are taken off).
        *inputs: of one call, to compare the two on; the network must be in evaluation mode for it.
    Returns:
        The network of this package, in the mode, on the device and in the dtype of ``network``.
    Raises:
        ValueError: no published network has these weights, or the two differ on ``inputs`` by more than the tolerance rule
            allows (docs/testing.md): an option that leaves no trace in weights, such as the output
            stride, is another; use :func:`pyindexnet.create_model` and :func:`pyindexnet.load_checkpoint`.
    """
    try:
        rebuilt = model_from_checkpoint(network.state_dict())
    except CheckpointError as failure:
        raise ValueError(f"rebuild: network must have the weights of a published one: {failure}") from failure
    parameter = next(network.parameters())
    rebuilt = rebuilt.to(parameter.device, parameter.dtype).train(network.training)
    if inputs:
        _compare(network, rebuilt, inputs)
    return rebuilt


def _visit(module: nn.Module, name: str, report: Report, decided: dict[nn.Module, FusedModule | None]) -> FusedModule | None:
    """What takes the place of ``module``, if anything does; else its descendants are visited."""
    library = type(module).__module__.partition(".")[0]
    if library == "pyindexnet" or isinstance(module, torch.jit.ScriptModule):
        return None
    if module not in decided:
        fused = None if library == "torch" else _decide(module, name, report)
        decided[module] = fused
        if fused is None:
            for child_name, child in list(module._modules.items()):
                path = f"{name}.{child_name}" if name else child_name
                replacement = None if child is None else _visit(child, path, report, decided)
                if replacement is not None:
                    module._modules[child_name] = replacement
                    report._swaps.append((module, child_name, replacement))
    return decided[module]


def _decide(module: nn.Module, name: str, report: Report) -> FusedModule | None:
    left: list[Entry] = []
    probe: Probe | None = None
    for kind, recognise in RECOGNISERS.items():
        decide = recognise(module)
        if decide is None:
            continue
        try:
            _check_forward_alone(module)
            probe = probe or Probe(module)
            build, difference = decide(probe)
        except NotThisKind:
            continue
        except ProbeError as failure:
            left.append(Entry(name, kind, False, str(failure)))
        else:
            report.entries.append(Entry(name, kind, True, error=difference))
            return build(module)
    report.entries += left
    return None


def _check_forward_alone(module: nn.Module) -> None:
    """Raise ProbeError where a fused module, which takes over the forward pass, would lose something else."""
    if any(getattr(m, table) for m in module.modules() for table in HOOKS):
        raise ProbeError("it or a layer of it has hooks, which the fused module would not run")
    if any(getattr(module, table, None) for table in STATE_HOOKS):
        raise ProbeError("it has hooks on its state dict, which the fused module would not run")
    for method in METHODS:
        owner = next(cls for cls in type(module).__mro__ if method in vars(cls))
        if method in vars(module) or owner.__module__.partition(".")[0] != "torch":
            raise ProbeError(f"it has a {method} of its own, which the fused module would not call")


def _compare(network: nn.Module, rebuilt: nn.Module, inputs: Sequence[Tensor]) -> None:
    if network.training:
        raise ValueError("rebuild: network must be in evaluation mode to be compared, call network.eval()")
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(*(x.double() for x in inputs)).cpu()
        value = rebuilt(*inputs)
        allowed = tolerance(exact, error(network(*inputs), exact), sum(p.numel() for p in network.parameters()), value.dtype)
    difference = error(value, exact)
    if not difference <= allowed:
        raise ValueError(
            f"rebuild: network must be the published one, got outputs that differ by {difference:.1e}, allowed {allowed:.1e}; "
            "an option that leaves no trace in the weights may be another"
        )
