# SPDX-License-Identifier: Apache-2.0
"""Trimap-guided pooling in the paper's form: branches of 1x1 convolution, batch norm and activation, each pooled over its own
window and over what the mask keeps; one branch by itself, or several and what is concatenated with them.

All branches become one convolution and one pooling whose cost does not grow with the window. Source: [TMFNet] Eq. 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from pyindexnet.adoption.fused import FusedModule, convolve, normalize_columns
from pyindexnet.adoption.probe import NotThisKind, Probe, ProbeError
from pyindexnet.adoption.recognisers import Decide, Decision, first_equal, register_recogniser
from pyindexnet.adoption.structure import ACTIVATIONS, Layer, accepts, alike, integers, layers, of_type
from pyindexnet.nn.context import EPS
from pyindexnet.ops.non_background_pool import MAX_WINDOWS, non_background_pool

SIZES = ((7, 9), (12, 10))
#: What is returned: the pooled branches alone, or the map before or behind them.
FORMS = ("branches", "map first", "map last")


class FusedTMP(FusedModule):
    """The branches, pooled by one call, and what the original concatenates with them.

    Args:
        original: the module whose place this takes.
        branches: paths of convolution, batch norm and activation of each branch.
        windows: side of each branch's window.
        eps, count_include_pad: of :func:`pyindexnet.non_background_pool`.
        form: one of FORMS.
        mask_first: the mask is the first argument.
    Shape: x (N, C, H, W), mask (N, 1, H, W) -> (N, channels, H, W).
    """

    def __init__(
        self,
        original: nn.Module,
        branches: Sequence[Sequence[str]],
        windows: Sequence[int],
        *,
        eps: float,
        count_include_pad: bool,
        form: str,
        mask_first: bool,
    ) -> None:
        super().__init__(original)
        self._branches = branches
        self._windows = tuple(windows)
        self._eps = eps
        self._count_include_pad = count_include_pad
        self._form = form
        self._mask_first = mask_first

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self._mask_first:
            x, mask = mask, x
        convs, norms, acts = ([self.layer(path) for path in paths] for paths in zip(*self._branches, strict=True))
        y = acts[0](normalize_columns(convolve(x, convs), norms, 1))
        pooled = non_background_pool(
            y, mask, kernel_size=self._windows, eps=self._eps, count_include_pad=self._count_include_pad
        )
        if self._form == "branches":
            return pooled
        return torch.cat((x, pooled) if self._form == "map first" else (pooled, x), 1)


@register_recogniser("trimap-guided pooling")
def recognise(module: nn.Module) -> Decide | None:
    """Equal branches of (1x1 convolution, batch norm, activation), a map and a mask."""
    found = layers(module)
    if found is None or not accepts(module, 2):
        return None
    units = of_type(found, nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS)
    pools = of_type(found, nn.AvgPool2d)
    if not units or len(units) % 3 or len(units) + len(pools) != len(found) or len(units) // 3 > MAX_WINDOWS:
        return None
    branches = [units[i : i + 3] for i in range(0, len(units), 3)]
    if not all(_is_branch(branch) for branch in branches) or not all(map(alike, map(list, zip(*branches, strict=True)))):
        return None
    return partial(_decide, module, branches, pools)


def _is_branch(branch: Sequence[Layer]) -> bool:
    conv, norm, act = branch
    return (
        type(conv.module) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
        and type(norm.module) is nn.BatchNorm2d
        and type(act.module) in ACTIVATIONS
    )


def _decide(module: nn.Module, branches: Sequence[Sequence[Layer]], pools: Sequence[Layer], probe: Probe) -> Decision:
    channels = branches[0][0].in_channels
    maps = [(probe.random(2, channels, h, w), _mask(probe, h, w)) for h, w in SIZES]
    maps[-1][1][..., : SIZES[-1][1] // 2] = 0  # windows without mask
    mask_first = False
    try:
        returned = probe.call(maps[0])
    except ProbeError:
        mask_first = True
        maps = [(mask, x) for x, mask in maps]
        returned = probe.call(maps[0])
    if not isinstance(returned, Tensor) or returned.dim() != 4 or tuple(returned.shape[2:]) != SIZES[0]:
        raise NotThisKind
    windows = list(dict.fromkeys(_windows(module, len(branches), pools)))
    if not windows:
        raise ProbeError("its windows must be odd integers among its attributes or in AvgPool2d layers of stride 1; none found")
    paths = tuple(tuple(layer.path for layer in branch) for branch in branches)
    eps = getattr(module, "eps", EPS)
    builds = [
        partial(
            FusedTMP,
            branches=paths,
            windows=sides,
            eps=eps if isinstance(eps, float) else EPS,
            count_include_pad=include,
            form=form,
            mask_first=mask_first,
        )
        for sides, include, form in product(windows, (False, True), FORMS)
    ]
    return first_equal(probe, builds, maps)


def _mask(probe: Probe, height: int, width: int) -> Tensor:
    """Away from 0, where dividing by it would make rounding large."""
    return probe.random(2, 1, height, width).abs() + 0.5


def _windows(module: nn.Module, count: int, pools: Sequence[Layer]) -> Iterator[tuple[int, ...]]:
    """Sides of the windows that the module may use."""
    sides = [p.kernel_size if isinstance(p.kernel_size, int) else p.kernel_size[0] for p in pools if p.stride in (1, (1, 1))]
    own = [v for _, v in integers(module)]
    candidates = [tuple(sides), *(tuple(v) for v in own if isinstance(v, (tuple, list)))]
    single = [v for v in own if isinstance(v, int) and v > 1]
    candidates += [tuple(single)] if count > 1 else [(v,) for v in single]
    for candidate in candidates:
        if len(candidate) == count and all(k % 2 and k > 0 for k in candidate):
            yield candidate
