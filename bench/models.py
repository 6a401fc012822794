# SPDX-License-Identifier: Apache-2.0
"""``python -m bench models``: whole networks in the published formulas, with reference and fused operators, and by peers."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.models import create_model, fuse
from pyindexnet.nn import GraphedModule
from pyindexnet.testing.parity import error

from .gate import WrongResult
from .networks import FORWARD, NETWORKS, TRAINING
from .peers import ENGINES, make_peer
from .results import COMPILE, MAX_AUTOTUNE, Row, make_row
from .run import Clock, Effort, Side, time_sides

#: Of weights, inputs and arithmetic; ``amp-``: weights and inputs in float32, autocast to the type.
PRECISIONS = ("float32", "float16", "bfloat16", "amp-float16", "amp-bfloat16")
_RATE = 1e-6  # of learning: weights hardly change, however many steps are timed
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_GATE_SIDE = 64


@dataclass(frozen=True)
class Sides:
    """What is timed beside the published network and the reference operators.

    Attributes:
        backends: ours; each runs the network as it is and, forward, fused.
        compiled: ``torch.compile`` of the published network and of ours.
        graphs: forward, the fused networks as CUDA graphs.
        peers: names of ``bench/peers.py``.
    """

    backends: Sequence[str] = ()
    compiled: bool = False
    graphs: bool = False
    peers: Sequence[str] = ()


@dataclass(frozen=True)
class Variant:
    """One side.

    Attributes:
        model: the network.
        dtype: of its weights and inputs.
        backend: that is forced.
        autocast: type that it is cast to; None: it is not.
        compiled: the first call of every size compiles.
    """

    model: nn.Module
    dtype: torch.dtype
    backend: str | None = None
    autocast: torch.dtype | None = None
    compiled: bool = False

    def context(self, device: str) -> AbstractContextManager[Any]:
        """To call the model in."""
        stack = ExitStack()
        stack.enter_context(use_backend(self.backend))
        if self.autocast is not None:
            stack.enter_context(torch.autocast(device, dtype=self.autocast))
        return stack


@functools.cache
def _network(name: str) -> nn.Module:
    """The weights of all sides."""
    torch.manual_seed(0)
    model = create_model(name, **NETWORKS[name].options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(NETWORKS[name].gamma)
    return model


def _types(precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Of weights and of arithmetic."""
    arithmetic: torch.dtype = getattr(torch, precision.removeprefix("amp-"))
    return torch.float32 if precision.startswith("amp-") else arithmetic, arithmetic


def variants(network: str, sides: Sides, mode: str, precision: str) -> dict[str, Variant]:
    """Each side by its name; all have the same weights. What infers alone is left out of other modes.

    The published network runs no operator of this package: ``reference`` keeps its units from being fused in training. Fused
    networks are converted, not cast by autocast, as their users would.
    """
    weights, arithmetic = _types(precision)
    exact = copy.deepcopy(_network(network))
    base = Variant(copy.deepcopy(exact).to(weights), weights, "reference", None if weights == arithmetic else arithmetic)
    eager = replace(base, model=NETWORKS[network].published(base.model))
    out = {"eager": eager, "reference": base}
    out |= {name: replace(base, backend=name) for name in sides.backends}
    if mode == FORWARD:
        fused = Variant(fuse(exact).to(arithmetic), arithmetic)
        out |= {f"{name}+fuse": replace(fused, backend=name) for name in sides.backends}
        if sides.graphs:
            graphed = replace(fused, model=GraphedModule(fused.model))
            out |= {f"{name}+fuse+graph": replace(graphed, backend=name) for name in sides.backends}
    if sides.compiled:
        out[COMPILE] = _compiled(eager, None)
        out |= {f"{name}+compile": _compiled(base, name) for name in sides.backends}
        if mode == FORWARD:
            frozen = replace(fused, model=fuse(fused.model, compile=True), compiled=True)
            out |= {f"{name}+fuse+compile": replace(frozen, backend=name) for name in sides.backends}
    if MAX_AUTOTUNE in sides.peers:
        out[MAX_AUTOTUNE] = _compiled(eager, None, MAX_AUTOTUNE)
    if mode == FORWARD:
        for name in (name for name in sides.peers if name != MAX_AUTOTUNE):
            peer = make_peer(name, NETWORKS[network].published(exact).eval(), arithmetic)
            out |= {} if peer is None else {name: Variant(peer, arithmetic, compiled=name not in ENGINES)}
    return out


def _compiled(variant: Variant, backend: str | None, mode: str | None = None) -> Variant:
    model = cast(nn.Module, torch.compile(variant.model, dynamic=False, mode=mode))
    return replace(variant, model=model, backend=backend, compiled=True)


def _picture(network: str, size: tuple[int, ...]) -> Tensor:
    torch.manual_seed(1)
    return NETWORKS[network].picture(size)


@functools.lru_cache(4)
def _gold(network: str, size: tuple[int, ...]) -> Tensor:
    """In float64, of the picture of that size."""
    with torch.inference_mode(), use_backend("reference"):
        return copy.deepcopy(_network(network)).eval().double()(_picture(network, size).double())


def check_model(
    network: str,
    name: str,
    variant: Variant,
    device: str,
    size: tuple[int, ...] | None = None,
    layout: str = "contiguous",
) -> None:
    """Output of a side in evaluation mode, within ten times the noise of the reference network in the same arithmetic.

    Args:
        size: of the input; None: a small one.
    Raises:
        WrongResult: it is not.
    """
    size = size or (1, NETWORKS[network].channels, _GATE_SIDE, _GATE_SIDE)
    gold = _gold(network, size)
    x = _picture(network, size).to(device, variant.dtype).contiguous(memory_format=_FORMATS[layout])
    reference = replace(variant, model=copy.deepcopy(_network(network)).to(device, variant.dtype), backend="reference")
    errors = []
    for side in (reference, variant):
        with torch.no_grad(), side.context(device):
            errors.append(error(side.model.to(device).eval()(x), gold))
    noise, found = errors
    if not found <= 10 * noise < math.inf:
        raise WrongResult(f"{network}, {name}: error {found:.3e}, noise of the reference network {noise:.3e}")


def model_side(name: str, variant: Variant, x: Tensor, mode: str) -> Side:
    """A side that runs the network forward, or one step of training: forward, L1 loss, backward, Adam.

    Args:
        x: input; is converted to what the side takes.
    """
    model, device = variant.model, x.device.type
    x = x.to(variant.dtype)

    def forward(_: Any) -> Tensor:
        with variant.context(device):
            return model(x)

    if mode == FORWARD:
        return Side(name, forward)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=variant.autocast == torch.float16)
    alpha = torch.rand(x.shape[0], 1, *x.shape[2:], generator=torch.Generator().manual_seed(2)).to(x)

    def step(_: Any) -> None:
        with variant.context(device):
            loss = F.l1_loss(model(x), alpha)
        with use_backend(variant.backend):
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return Side(name, step, lambda: optimizer.zero_grad(set_to_none=True))


def case_row(network: str, mode: str, precision: str, layout: str, size: tuple[int, ...]) -> Row:
    """The columns that name a case."""
    shape = "x".join(map(str, size))
    return {"op": network, "mode": mode, "dtype": precision, "layout": layout, "shape": shape}


def run_models(
    network: str,
    cases: Sequence[tuple[str, tuple[int, ...]]],
    layouts: Sequence[str],
    precisions: Sequence[str],
    sides: Sides,
    device: str,
    clock: Clock,
    effort: Effort,
    where: Row,
) -> Iterator[list[Row]]:
    """Gate, then one list of rows for each precision, layout and case.

    A compiled side is gated where it is timed forward, so that it is compiled once; in a training step it is not.

    Raises:
        WrongResult: a side computes something else; nothing of its case was timed.
        ValueError: a peer is not installed.
    """
    for precision in precisions:
        for name, variant in variants(network, sides, FORWARD, precision).items():
            if not variant.compiled:
                check_model(network, name, variant, device)
    for precision in precisions:
        for layout in layouts:
            for mode, size in cases:
                torch._dynamo.reset()
                x = _picture(network, size).to(device).contiguous(memory_format=_FORMATS[layout])
                timed = []
                for name, variant in variants(network, sides, mode, precision).items():
                    if "fuse" not in name.split("+"):  # those have a layout of their own
                        variant.model.to(memory_format=_FORMATS[layout])
                    variant.model.to(device).train(mode == TRAINING)
                    if variant.compiled and mode == FORWARD:
                        check_model(network, name, variant, device, size, layout)
                    timed.append(model_side(name, variant, x, mode))
                with torch.set_grad_enabled(mode == TRAINING):
                    timings = time_sides(timed, clock, effort)
                case = case_row(network, mode, precision, layout, size)
                yield [make_row(case, side.name, timings, None, where) for side in timed]
