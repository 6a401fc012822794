# SPDX-License-Identifier: Apache-2.0
"""Index blocks in the published form: from a map to the normalised encoder and decoder index maps at its own size.

The structure is one column of layers that ends in four channels (holistic), or four equal columns, one for each position of the
2 x 2 cell (depthwise, one to one or many to one); what normalises the maps is found by the probe. Four columns become one
convolution, one batch norm and one grouped 1x1 convolution, and each map is written once, by one operator, from the raw logits.
Source: [IndexNet] sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from pyindexnet.adoption.fused import FusedModule, convolve, normalize_columns
from pyindexnet.adoption.probe import NotThisKind, Probe, ProbeError
from pyindexnet.adoption.recognisers import Decide, Decision, first_equal, register_recogniser
from pyindexnet.adoption.structure import ABSORBED, ACTIVATIONS, Layer, alike, layers, required_inputs
from pyindexnet.nn.index_networks import POSITIONS
from pyindexnet.ops.indexed_upsample import indexed_upsample
from pyindexnet.reference import NORMALIZATIONS

SIZES = ((6, 8), (7, 5))


class FusedIndexBlock(FusedModule):
    """Index maps (N, C or 1, H, W), as the original returns them.

    Args:
        original: the module whose place this takes.
        columns: paths of the layers of each column.
        normalizations: of each map that is returned.
        container: type of what is returned: tuple, list, or Tensor for a single map.
    Shape: (N, C, H, W) -> maps (N, C or 1, 2h, 2w), h and w being the size of the logits.
    """

    def __init__(
        self, original: nn.Module, columns: Sequence[Sequence[str]], normalizations: Sequence[str], container: type
    ) -> None:
        super().__init__(original)
        self._columns = columns
        self._normalizations = normalizations
        self._container = container

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
        logits = self._logits(x)
        n, c, _, h, w = logits.shape
        ones = logits.new_ones(()).expand(n, c, h, w)
        maps = [indexed_upsample(ones, logits, normalization=name) for name in self._normalizations]
        return maps[0] if self._container is Tensor else self._container(maps)

    def _logits(self, x: Tensor) -> Tensor:
        """(N, C or 1, 4, h, w)."""
        stages = [[self.layer(path) for path in paths] for paths in zip(*self._columns, strict=True)]
        first = stages[0]
        groups = first[0].groups
        y = convolve(x, first)
        if len(stages) > 1:
            _, norms, acts, predict = stages
            y = convolve(acts[0](normalize_columns(y, norms, groups)), predict, separate=True)
        if len(self._columns) == 1:
            return y.unsqueeze(1)
        return y.unflatten(1, (POSITIONS, -1)).transpose(1, 2) if groups == 1 else y.unflatten(1, (-1, POSITIONS))


@register_recogniser("index block")
def recognise(module: nn.Module) -> Decide | None:
    """One or four columns: a convolution of stride 2, or that, a batch norm, an activation and a 1x1 convolution."""
    found = layers(module)
    if found is None or required_inputs(module) != 1:
        return None
    found = [layer for layer in found if type(layer.module) not in ABSORBED]
    for count in (1, POSITIONS):
        length = len(found) // count
        if length not in (1, 4) or len(found) != count * length:
            continue
        columns = [found[i * length : (i + 1) * length] for i in range(count)]
        if _is_column(columns[0], count) and all(alike(list(stage)) for stage in zip(*columns, strict=True)):
            return partial(_decide, columns)
    return None


def _is_column(column: Sequence[Layer], count: int) -> bool:
    first, last = column[0], column[-1]
    if type(first.module) is not nn.Conv2d or first.stride != (2, 2) or first.kernel_size[0] not in (2, 4):
        return False
    out = POSITIONS if count == 1 else first.in_channels
    if len(column) == 1:
        return first.out_channels == out
    _, norm, act, _ = column
    return (
        type(norm.module) is nn.BatchNorm2d
        and type(act.module) in ACTIVATIONS
        and type(last.module) is nn.Conv2d
        and (last.kernel_size, last.stride, last.padding) == ((1, 1), (1, 1), (0, 0))
        and (last.in_channels, last.out_channels) == (first.out_channels, out)
        and last.groups == first.groups
    )


def _decide(columns: Sequence[Sequence[Layer]], probe: Probe) -> Decision:
    channels = columns[0][0].in_channels
    cases = [(probe.random(2, channels, h, w),) for h, w in SIZES]
    returned = probe.call(cases[0])
    maps = [returned] if isinstance(returned, Tensor) else returned
    width = 1 if len(columns) == 1 else channels
    if not isinstance(maps, (tuple, list)) or type(returned) not in (tuple, list, Tensor):
        raise ProbeError("must return maps, or a tuple or list of them")
    if any(not isinstance(m, Tensor) or tuple(m.shape) != (2, width, *SIZES[0]) for m in maps):
        raise NotThisKind
    paths = tuple(tuple(layer.path for layer in column) for column in columns)

    build = partial(FusedIndexBlock, columns=paths, container=type(returned))
    # the nearest; verify says whether it is the same
    known = probe.call(cases[0], partial(build, normalizations=NORMALIZATIONS, container=list))
    chosen = [NORMALIZATIONS[min(range(len(known)), key=lambda k: float((known[k] - m).abs().max()))] for m in maps]
    return first_equal(probe, [partial(build, normalizations=chosen)], cases)
