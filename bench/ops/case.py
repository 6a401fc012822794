# SPDX-License-Identifier: Apache-2.0
"""What a benchmark of an operator declares, and its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyindexnet.testing import SPECS, OpSpec, Sample

RATIO = 2
POSITIONS = RATIO * RATIO
MODES = ("forward", "backward", "forward+backward")
LAYOUTS = ("contiguous", "channels_last")
MAPS = ("depthwise", "holistic")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes:
        size: (N, C, H, W), H and W the high-resolution grid and even.
        dtype: of all tensors.
        layout: ``contiguous``, or ``channels_last`` for features and index maps.
        maps: one of the operator's kinds; of index maps ``depthwise``, or ``holistic`` for one map shared by all channels.
        device: ``cpu`` or ``cuda``.
    """

    size: Shape
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    maps: str = "depthwise"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(self.size) != 4 or any(n < 1 for n in self.size) or self.size[2] % RATIO or self.size[3] % RATIO:
            raise ValueError(f"bench: size must be (N, C, H, W) with even H and W, got {self.size}")

    @property
    def shape(self) -> str:
        """For tables: NxCxHxW, with the kind of map where it is not depthwise."""
        text = "x".join(map(str, self.size))
        return text if self.maps == "depthwise" else f"{text} {self.maps}"

    @property
    def high(self) -> Shape:
        return self.size

    @property
    def low(self) -> Shape:
        n, c, height, width = self.size
        return n, c, height // RATIO, width // RATIO

    @property
    def logits(self) -> Shape:
        n, c, h, w = self.low
        return n, c if self.maps == "depthwise" else 1, POSITIONS, h, w


@dataclass(frozen=True)
class OpBench:
    """How an operator is measured.

    Attributes:
        name: operator, the key of its :class:`~pyindexnet.testing.OpSpec`.
        normalization: of the index maps, as published.
        inputs, outputs: shapes of its tensors.
        published: the formula of the papers in eager PyTorch, ``published(*tensors, **peer_options(case))``; the peer.
        more: further keyword arguments of the public function.
        kinds: what ``Case.maps`` may be.
        formulas: further formulas, called as ``published``, by the name of the side that is ``torch.compile`` of one.
        sides: further ways to compute the same, by name: functions of a case that give a function of ``Tensors.ours``.
    """

    name: str
    normalization: str
    inputs: Callable[[Case], tuple[Shape, ...]]
    outputs: Callable[[Case], tuple[Shape, ...]]
    published: Callable[..., Any]
    more: Callable[[Case], dict[str, Any]] = lambda case: {}
    kinds: tuple[str, ...] = MAPS
    formulas: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    sides: Mapping[str, Callable[[Case], Callable[..., Any]]] = field(default_factory=dict)

    @property
    def spec(self) -> OpSpec:
        return SPECS[self.name]

    def options(self, case: Case) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"ratio": RATIO, "normalization": self.normalization, **self.more(case)}

    def arguments(self, case: Case, *tensors: Tensor) -> tuple[Any, ...]:
        """Positional arguments of the dispatcher op and of the reference formula."""
        return self.spec.arguments(*tensors, **self.options(case))

    def peer_options(self, case: Case) -> dict[str, Any]:
        """Keyword arguments of the published formula."""
        return {}

    def peer(self, case: Case) -> Callable[..., Any]:
        """The published formula of a case, a function of the tensors."""
        return partial(self.published, **self.peer_options(case))

    def peers(self, case: Case) -> dict[str, Callable[..., Any]]:
        """The further formulas of a case, functions of the tensors."""
        return {name: partial(formula, **self.peer_options(case)) for name, formula in self.formulas.items()}

    def timed_samples(self) -> list[Sample]:
        """Of the operator's tests, those like the timed cases: odd sizes, both kinds of maps, large logits."""
        timed = {"ratio": RATIO, "normalization": self.normalization}
        return [s for s in self.spec.samples if timed.items() <= s.options.items() and s.shapes[0][0]]

    def own_cases(self, device: str, dtype: torch.dtype, quick: bool) -> list[Case]:
        """Cases by default beside those that all operators of its kinds share."""
        return []

    def sample(self, case: Case) -> Sample:
        return Sample(case.shape, self.inputs(case), self.options(case))

    def bytes_moved(self, case: Case, mode: str) -> int:
        """Bytes that must move: forward reads the inputs and writes the outputs; backward reads the outputs' gradients and
        the inputs and writes the inputs' gradients.
        """
        inputs = sum(map(math.prod, self.inputs(case)))
        outputs = sum(map(math.prod, self.outputs(case)))
        elements = {"forward": inputs + outputs, "backward": outputs + 2 * inputs, "forward+backward": 3 * inputs + 2 * outputs}
        return elements[mode] * case.dtype.itemsize


@dataclass(frozen=True)
class Tensors:
    """Inputs and output gradients of one case.

    Attributes:
        ours: the operator's tensors as our modules hand them over: channels_last maps position-major in their channels.
        published: the same values as the published formula takes them best: channels_last maps channel-major.
        cotangents: gradients of the outputs.
    """

    ours: tuple[Tensor, ...]
    published: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]


def stored(t: Tensor, *order: int) -> Tensor:
    """The same values with ``order`` as the order of dimensions in memory."""
    return t.permute(order).contiguous().permute([order.index(d) for d in range(t.dim())])


def make_inputs(bench: OpBench, case: Case, seed: int = 0) -> Tensors:
    """Normally distributed tensors of a case; those of ``ours`` and ``cotangents`` are leaves without gradient."""
    rng = torch.Generator(case.device).manual_seed(seed)

    def draw(shape: Shape) -> Tensor:
        t = torch.randn(shape, generator=rng, dtype=torch.float32, device=case.device).to(case.dtype)
        return stored(t, 0, 2, 3, 1) if case.layout == "channels_last" and t.dim() == 4 else t

    ours, theirs = [], []
    for name, shape in zip(bench.spec.tensors, bench.inputs(case), strict=False):  # the last ones may be optional
        t = bench.spec.values.get(name, lambda t: t)(draw(shape))
        index_map = name == "logits" and case.layout == "channels_last" and t.dim() == 5
        ours.append(stored(t, 0, 3, 4, 2, 1) if index_map else t)
        theirs.append(stored(t, 0, 3, 4, 1, 2) if index_map else t)
    return Tensors(tuple(ours), tuple(theirs), tuple(draw(shape) for shape in bench.outputs(case)))
