# SPDX-License-Identifier: Apache-2.0
"""``python -m bench models``: whole networks with the published formulas, the reference operators and each fused backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.models import create_model
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.nn.index_networks import POSITIONS, DepthwiseIndexNetwork
from pyindexnet.nn.resampling import Guide, IndexedResampling, Reduced, Resampling
from pyindexnet.testing.parity import error

from .gate import WrongResult
from .results import Row, make_row
from .run import Clock, Effort, Side, time_sides

NAME = "indexnet_matting"
#: The released network.
OPTIONS: dict[str, Any] = {"index_network": "m2o", "nonlinear": True, "context": True, "index_width": 1}
FORWARD, TRAINING = "forward", "training step"
#: (mode, input size) by device.
CASES = {
    device: ((FORWARD, (1, 4, 320, 320)), (FORWARD, (1, 4, 512, 512)), (TRAINING, (batch, 4, 320, 320)))
    for device, batch in (("cpu", 2), ("cuda", 8))
}
QUICK = dict.fromkeys(CASES, ((FORWARD, (1, 4, 320, 320)),))
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class PublishedIndexBlock(nn.Module):
    """The four columns of a many-to-one index network, one convolution stack each, as [IndexNet] figure 6 draws them.

    Takes the weights of a :class:`DepthwiseIndexNetwork`. Returns the shuffled full-size maps for pooling and upsampling.
    """

    def __init__(self, network: DepthwiseIndexNetwork) -> None:
        super().__init__()
        if network.family != "m2o" or network.hidden is None:
            raise ValueError(f"PublishedIndexBlock: network must be nonlinear m2o, got {network}")
        self.columns = nn.ModuleList(self._column(network, k) for k in range(POSITIONS))

    @staticmethod
    def _column(network: DepthwiseIndexNetwork, position: int) -> nn.Sequential:
        first, last = cast(ConvBNAct, network.hidden), network.predict
        hidden = first.conv.out_channels // POSITIONS
        conv = first.conv
        unit = ConvBNAct(conv.in_channels, hidden, conv.kernel_size[0], stride=2, padding=conv.padding[0])
        predict = nn.Conv2d(hidden, last.out_channels // POSITIONS, 1, bias=False)
        for merged, own in ((first, unit), (last, predict)):
            own.to(last.weight)  # dtype and device; before the weights are copied, so that none is rounded
            state = merged.state_dict()
            own.load_state_dict({k: network.split(t)[position] if t.dim() else t for k, t in state.items()})
        return nn.Sequential(unit, predict)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.stack([column(x) for column in self.columns], 2)
        weights = logits.sigmoid()
        return F.pixel_shuffle(weights.softmax(2).flatten(1, 2), 2), F.pixel_shuffle(weights.flatten(1, 2), 2)


class PublishedResampling(Resampling):
    """Indexed pooling and upsampling with the published formulas: full-size maps, average pooling, interpolation."""

    def __init__(self, resampling: IndexedResampling) -> None:
        super().__init__()
        self.block = PublishedIndexBlock(cast(DepthwiseIndexNetwork, resampling.network))

    def reduce(self, x: Tensor, keep: bool) -> Reduced:
        encoder, decoder = self.block(x)
        skip = encoder * x
        return 4 * F.avg_pool2d(skip, 2), skip, (decoder, (x.shape[2], x.shape[3]))

    def restore(self, y: Tensor, guide: Guide) -> Tensor:
        return guide[0] * F.interpolate(y, scale_factor=2, mode="nearest")


def published_form(model: nn.Module) -> nn.Module:
    """A copy of an IndexNet Matting network, with its weights, that computes as the published code does."""
    model = copy.deepcopy(model)
    resampling = cast(nn.ModuleDict, model.resampling)
    for name, module in resampling.items():
        resampling[name] = PublishedResampling(cast(IndexedResampling, module))
    return model


def _variants(names: Sequence[str], compiled: bool) -> dict[str, tuple[nn.Module, str | None]]:
    """(network, forced backend) of each side; all have the same weights."""
    torch.manual_seed(0)
    model = create_model(NAME, **OPTIONS)
    published = published_form(model)
    out: dict[str, tuple[nn.Module, str | None]] = {"eager": (published, None), "reference": (model, "reference")}
    out |= {name: (model, name) for name in names}
    if compiled:
        out["compile"] = (cast(nn.Module, torch.compile(published, dynamic=False)), None)
        out |= {f"{name}+compile": (cast(nn.Module, torch.compile(model, dynamic=False)), name) for name in names}
    return out


def check_model(name: str, model: nn.Module, backend: str | None, device: str) -> None:
    """Output of a side in evaluation mode, within ten times the noise of the reference network in the same dtype.

    Raises:
        WrongResult: it is not.
    """
    torch.manual_seed(1)
    x = torch.randn(1, 4, 64, 64)
    torch.manual_seed(0)
    plain = create_model(NAME, **OPTIONS).eval()
    with torch.inference_mode(), use_backend("reference"):
        gold = copy.deepcopy(plain).double()(x.double())
        noise = error(plain.to(device)(x.to(device)), gold)
    with torch.inference_mode(), use_backend(backend):
        found = error(model.to(device).eval()(x.to(device)), gold)
    if found > 10 * noise:
        raise WrongResult(f"{NAME}, {name}: error {found:.3e}, noise of the reference network {noise:.3e}")


def model_side(name: str, model: nn.Module, backend: str | None, x: Tensor, mode: str) -> Side:
    """A side that runs the network forward, or forward, sum and backward."""

    def forced(call: Callable[[], Any]) -> Callable[[Any], Any]:
        def run(_: Any) -> Any:
            with use_backend(backend):
                return call()

        return run

    if mode == FORWARD:
        return Side(name, forced(lambda: model(x)))
    return Side(name, forced(lambda: model(x).sum().backward()), lambda: model.zero_grad(set_to_none=True))


def run_models(
    cases: Sequence[tuple[str, tuple[int, ...]]],
    layouts: Sequence[str],
    names: Sequence[str],
    compiled: bool,
    device: str,
    clock: Clock,
    effort: Effort,
    where: Row,
) -> Iterator[list[Row]]:
    """Gate, then one list of rows for each layout and case.

    Raises:
        WrongResult: a side computes something else; nothing was timed.
    """
    for name, (model, backend) in _variants(names, compiled).items():
        check_model(name, model, backend, device)
    for layout in layouts:
        for mode, size in cases:
            torch._dynamo.reset()
            x = torch.randn(size, device=device).contiguous(memory_format=_FORMATS[layout])
            sides = []
            for name, (model, backend) in _variants(names, compiled).items():
                model = model.to(device).to(memory_format=_FORMATS[layout]).train(mode == TRAINING)
                sides.append(model_side(name, model, backend, x, mode))
            with torch.set_grad_enabled(mode == TRAINING):
                timings = time_sides(sides, clock, effort)
            shape = "x".join(map(str, size))
            key = {"op": NAME, "mode": mode, "dtype": "float32", "layout": layout, "shape": shape}
            yield [make_row(key, side.name, timings, None, where) for side in sides]
