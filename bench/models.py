# SPDX-License-Identifier: Apache-2.0
"""``python -m bench models``: whole networks in the published formulas, with reference and fused operators, and by peers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.models import create_model, fuse
from pyindexnet.testing.parity import error

from .gate import WrongResult
from .networks import FORWARD, NETWORKS, TRAINING
from .peers import make_peer
from .results import Row, make_row
from .run import Clock, Effort, Side, time_sides

_RATE = 1e-6  # of learning: weights hardly change, however many steps are timed
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def variants(
    network: str, names: Sequence[str], compiled: bool, peers: Sequence[str], mode: str, dtype: torch.dtype
) -> dict[str, tuple[nn.Module, str | None]]:
    """(network, forced backend) of each side; all have the same weights. What infers alone is left out of other modes.

    The published network runs no operator of this package: ``reference`` keeps its units from being fused in training.
    """
    torch.manual_seed(0)
    exact = create_model(network, **NETWORKS[network].options)
    model = copy.deepcopy(exact).to(dtype)
    published = NETWORKS[network].published(model)
    out: dict[str, tuple[nn.Module, str | None]] = {"eager": (published, "reference"), "reference": (model, "reference")}
    out |= {name: (model, name) for name in names}
    fused = fuse(exact).to(dtype)
    if mode == FORWARD:
        out |= {f"{name}+fuse": (fused, name) for name in names}
    if compiled:
        out["compile"] = (_compiled(published), None)
        out |= {f"{name}+compile": (_compiled(model), name) for name in names}
        if mode == FORWARD:
            out |= {f"{name}+fuse+compile": (fuse(fused, compile=True), name) for name in names}
    if mode == FORWARD:
        for name in peers:
            peer = make_peer(name, NETWORKS[network].published(exact).eval(), dtype)
            out |= {} if peer is None else {name: (peer, None)}
    return out


def _compiled(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module, dynamic=False))


def check_model(
    network: str, name: str, model: nn.Module, backend: str | None, device: str, dtype: torch.dtype = torch.float32
) -> None:
    """Output of a side in evaluation mode, within ten times the noise of the reference network in the same dtype.

    Raises:
        WrongResult: it is not.
    """
    torch.manual_seed(1)
    x = NETWORKS[network].picture((1, NETWORKS[network].channels, 64, 64))
    torch.manual_seed(0)
    plain = create_model(network, **NETWORKS[network].options).eval()
    with torch.inference_mode(), use_backend("reference"):
        gold = copy.deepcopy(plain).double()(x.double())
        noise = error(plain.to(device, dtype)(x.to(device, dtype)), gold)
    with torch.inference_mode(), use_backend(backend):
        found = error(model.to(device).eval()(x.to(device, dtype)), gold)
    if found > 10 * noise:
        raise WrongResult(f"{network}, {name}: error {found:.3e}, noise of the reference network {noise:.3e}")


def model_side(name: str, model: nn.Module, backend: str | None, x: Tensor, mode: str) -> Side:
    """A side that runs the network forward, or one step of training: forward, L1 loss, backward, Adam."""

    def forced(call: Callable[[], Any]) -> Callable[[Any], Any]:
        def run(_: Any) -> Any:
            with use_backend(backend):
                return call()

        return run

    if mode == FORWARD:
        return Side(name, forced(lambda: model(x)))
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE, fused=True)
    alpha = torch.rand(x.shape[0], 1, *x.shape[2:], generator=torch.Generator().manual_seed(2)).to(x)

    def step() -> None:
        F.l1_loss(model(x), alpha).backward()
        optimizer.step()

    return Side(name, forced(step), lambda: optimizer.zero_grad(set_to_none=True))


def run_models(
    network: str,
    cases: Sequence[tuple[str, tuple[int, ...]]],
    layouts: Sequence[str],
    names: Sequence[str],
    compiled: bool,
    device: str,
    clock: Clock,
    effort: Effort,
    where: Row,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    peers: Sequence[str] = (),
) -> Iterator[list[Row]]:
    """Gate, then one list of rows for each dtype, layout and case.

    Raises:
        WrongResult: a side computes something else; nothing was timed.
        ValueError: a peer is not installed.
    """
    for dtype in dtypes:
        for name, (model, backend) in variants(network, names, compiled, peers, FORWARD, dtype).items():
            check_model(network, name, model, backend, device, dtype)
    for dtype in dtypes:
        for layout in layouts:
            for mode, size in cases:
                torch._dynamo.reset()
                picture = NETWORKS[network].picture(size).to(device, dtype)
                x = picture.contiguous(memory_format=_FORMATS[layout])
                sides = []
                for name, (model, backend) in variants(network, names, compiled, peers, mode, dtype).items():
                    if not name.endswith("fuse"):  # those have a layout of their own
                        model = model.to(memory_format=_FORMATS[layout])
                    sides.append(model_side(name, model.to(device).train(mode == TRAINING), backend, x, mode))
                with torch.set_grad_enabled(mode == TRAINING):
                    timings = time_sides(sides, clock, effort)
                key = {"op": network, "mode": mode, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
                key["shape"] = "x".join(map(str, size))
                yield [make_row(key, side.name, timings, None, where) for side in sides]
