# SPDX-License-Identifier: Apache-2.0
"""Global-local fusion in the paper's form, [TMFNet] Eqs. 4 to 7: four or five convolutions, told apart by their shapes.

The fusion of each pixel with its own kernels becomes one operator; nothing is unfolded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.adoption.fused import FusedModule
from pyindexnet.adoption.probe import Inputs, NotThisKind, Probe, ProbeError
from pyindexnet.adoption.recognisers import Decide, Decision, first_equal, register_recogniser
from pyindexnet.adoption.structure import ABSORBED, ACTIVATIONS, Layer, accepts, layers, of_type
from pyindexnet.nn.context import Leaky
from pyindexnet.nn.fusion import SCALE
from pyindexnet.ops.grouped_spatial_fusion import KERNEL_SIZES, grouped_spatial_fusion
from pyindexnet.reference.window import GROUP_ORDERS

#: Of the low-level map, and whether the high-level one has half the size, rounded up.
SIZES = ((6, 8), (8, 6), (7, 5))


@dataclass(frozen=True)
class Parts:
    """Paths of the layers by their part in the equations; None where a part is absent, and for an activation that is not a
    layer: the paper's leaky ReLU."""

    distribute: str
    local_embedding: str
    global_embedding: str | None
    predict: str
    merge: tuple[str, ...]
    act: str | None


@dataclass(frozen=True)
class Form:
    """What the shapes of the layers leave open.

    Attributes:
        order: positions of (high, low, context) among the arguments.
        shuffled: the high-level map is brought to the size of the low-level one by pixel shuffle.
        high_first: it comes first in the concatenation.
        mean: the context is averaged over space here, not by the caller.
        group_order: of :func:`pyindexnet.grouped_spatial_fusion`.
    """

    order: tuple[int, ...]
    shuffled: bool
    high_first: bool
    mean: bool
    group_order: str


class FusedGLF(FusedModule):
    """GLF on the layers of the original.

    Args:
        original: the module whose place this takes.
        parts: its layers.
        form: how they work together.
        kernel_size: side of the fusion kernels.
    Shape: as the original.
    """

    def __init__(self, original: nn.Module, parts: Parts, form: Form, kernel_size: int) -> None:
        super().__init__(original)
        self._parts = parts
        self._form = form
        self._kernel_size = kernel_size

    def forward(self, *maps: Tensor) -> Tensor:
        parts, form = self._parts, self._form
        high, low, *context = (maps[i] for i in form.order)
        if form.shuffled:
            high = F.pixel_shuffle(high, SCALE)[:, :, : low.shape[2], : low.shape[3]]
        x = self.layer(parts.distribute)(torch.cat((high, low) if form.high_first else (low, high), 1))
        hidden = self.layer(parts.local_embedding)(x)
        if parts.global_embedding is not None:
            g = context[0].mean((2, 3), keepdim=True) if form.mean else context[0]
            hidden = hidden + self.layer(parts.global_embedding)(g)
        hidden = Leaky()(hidden) if parts.act is None else self.layer(parts.act)(hidden)
        kernels = self.layer(parts.predict)(hidden)
        k = self._kernel_size
        y = grouped_spatial_fusion(x, kernels, groups=kernels.shape[1] // k**2, kernel_size=k, group_order=form.group_order)
        for path in parts.merge:
            y = self.layer(path)(y)
        return y


@register_recogniser("global-local fusion")
def recognise(module: nn.Module) -> Decide | None:
    """1x1 convolutions, one 3x3 convolution to a multiple of k*k channels, and one batch norm behind a 1x1 convolution."""
    found = layers(module)
    if found is None or not (accepts(module, 2) or accepts(module, 3)):
        return None
    found = [layer for layer in found if type(layer.module) not in ABSORBED]
    assignments = list(_assignments(found))
    return partial(_decide, assignments, found) if assignments else None


def _assignments(found: list[Layer]) -> Iterator[tuple[Parts, int]]:
    """Parts that the shapes allow, and the side of the kernels."""
    convs, norms = of_type(found, nn.Conv2d), of_type(found, nn.BatchNorm2d)
    large = [c for c in convs if c.kernel_size != (1, 1)]
    if len(convs) not in (4, 5) or len(norms) != 1 or len(large) != 1:
        return
    predict, at = large[0], found.index(norms[0])
    merge = found[at - 1 : at + 2]
    if len(merge) != 3 or type(merge[0].module) is not nn.Conv2d or type(merge[2].module) not in ACTIVATIONS:
        return
    acts = [a for a in of_type(found, *ACTIVATIONS) if a is not merge[2]]
    if len(acts) > 1 or merge[0] is predict:
        return
    inter, rest = merge[0].in_channels, [c for c in convs if c not in (predict, merge[0])]
    for distribute, local, *others in permutations(rest):
        if (distribute.out_channels, local.in_channels, local.out_channels) != (inter, inter, predict.in_channels):
            continue
        if others and others[0].out_channels != predict.in_channels:
            continue
        for k in KERNEL_SIZES[1:]:
            groups = predict.out_channels // k**2
            if predict.out_channels % k**2 == 0 and inter % groups == 0:
                yield (
                    Parts(
                        distribute.path,
                        local.path,
                        others[0].path if others else None,
                        predict.path,
                        tuple(layer.path for layer in merge),
                        acts[0].path if acts else None,
                    ),
                    k,
                )


def _inputs(
    probe: Probe, parts: Parts, by_path: dict[str, Layer], order: Sequence[int], shuffled: bool, mean: bool
) -> list[Inputs]:
    """Arguments in this order; how the channels are divided between the two maps does not matter, as long as the sum fits."""
    total = by_path[parts.distribute].in_channels
    cases: list[Inputs] = []
    for h, w in SIZES:
        size = (-(-h // SCALE), -(-w // SCALE)) if shuffled else (h, w)
        maps = [probe.random(2, SCALE**2 if shuffled else 1, *size), probe.random(2, total - 1, h, w)]
        if parts.global_embedding is not None:
            maps.append(probe.random(2, by_path[parts.global_embedding].in_channels, *((3, 2) if mean else (1, 1))))
        cases.append([maps[order.index(i)] for i in range(len(maps))])
    return cases


def _decide(assignments: Sequence[tuple[Parts, int]], found: Sequence[Layer], probe: Probe) -> Decision:
    by_path = {layer.path: layer for layer in found}
    count = 2 if assignments[0][0].global_embedding is None else 3
    reason: ProbeError | None = None
    for order, shuffled, mean in product(permutations(range(count)), (True, False), (True, False)[count == 2 :]):
        for parts, k in assignments:
            cases = _inputs(probe, parts, by_path, order, shuffled, mean)
            try:
                probe.call(cases[0])
            except ProbeError:
                continue
            forms = (
                Form(order, shuffled, high_first, mean, group_order)
                for high_first, group_order in product((True, False), GROUP_ORDERS)
            )
            try:
                return first_equal(probe, [partial(FusedGLF, parts=parts, form=form, kernel_size=k) for form in forms], cases)
            except ProbeError as failure:
                reason = failure
    if reason is None:
        raise NotThisKind  # it takes no high-level and low-level map
    raise reason
