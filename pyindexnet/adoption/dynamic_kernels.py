# SPDX-License-Identifier: Apache-2.0
"""Modules that predict a kernel for every pixel by a chain of layers and apply it to their own input.

CARAFE packs (compressor, content encoder, softmax, reassembly), CARAFE++ downsampling and involution (reduce, span, no
normalisation; a mean pooling first where it strides). They differ in the size of what they return and in the normalisation of
the kernels, and the probe finds both; sources: CARAFE, Wang et al., ICCV 2019; Involution, Li et al., CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pyindexnet.adoption.fused import FusedModule
from pyindexnet.adoption.probe import NotThisKind, Probe, ProbeError
from pyindexnet.adoption.recognisers import Decide, Decision, first_equal, register_recogniser
from pyindexnet.adoption.structure import ABSORBED, POOLS, Layer, layers, of_type, required_inputs
from pyindexnet.ops import dynamic_downsample, dynamic_upsample, grouped_spatial_fusion
from pyindexnet.ops.dynamic_upsample import KERNEL_SIZES, SCALES
from pyindexnet.reference import NORMALIZATIONS

SIZES = ((8, 12), (6, 4), (9, 7))
#: Kernels of one tap are a multiplication; nothing is gained, and any module would look like one.
SIDES = tuple(k for k in KERNEL_SIZES if k > 1)
#: softmax first: the usual one.
BY_USE = ("softmax", *(name for name in NORMALIZATIONS if name != "softmax"))


class FusedDynamicKernels(FusedModule):
    """``operator(x, kernels(x), **options)``.

    Args:
        original: the module whose place this takes.
        chain: paths of the layers that predict the kernels, in order.
        operator: of :mod:`pyindexnet.ops`.
        options: of the operator.
    Shape: as the original.
    """

    def __init__(
        self, original: nn.Module, chain: Sequence[str], operator: Callable[..., Tensor], options: dict[str, Any]
    ) -> None:
        super().__init__(original)
        self._chain = chain
        self._operator = operator
        self._options = options

    def forward(self, x: Tensor) -> Tensor:
        kernels = x
        for path in self._chain:
            kernels = self.layer(path)(kernels)
        return self._operator(x, kernels, **self._options)


@register_recogniser("dynamic kernels")
def recognise(module: nn.Module) -> Decide | None:
    """A chain of layers whose last convolution gives a multiple of k*k channels, k from 3."""
    found = layers(module)
    if found is None or required_inputs(module) != 1:
        return None
    chain = [layer for layer in found if type(layer.module) not in ABSORBED]
    convs = of_type(chain, nn.Conv2d)
    if not convs or len(convs) > 3 or type(chain[-1].module) not in (nn.Conv2d, *POOLS):
        return None
    if any(before.out_channels != after.in_channels for before, after in pairwise(convs)):
        return None
    if not _sides(convs[-1].out_channels) and not _declared(module, convs[-1].out_channels):
        return None
    return partial(_decide, module, chain, convs)


def _sides(channels: int) -> list[int]:
    return [k for k in SIDES if channels % (k * k) == 0]


def _declared(module: nn.Module, channels: int) -> int | None:
    """A kernel side that the module names, that fits, and that no operator takes."""
    sides = (v for k, v in vars(module).items() if "kernel" in k and isinstance(v, int) and not isinstance(v, bool))
    return next((v for v in sides if v > 1 and v not in SIDES and channels % (v * v) == 0), None)


def _decide(module: nn.Module, chain: Sequence[Layer], convs: Sequence[Layer], probe: Probe) -> Decision:
    channels = convs[0].in_channels
    cases = [(probe.random(2, channels, h, w),) for h, w in SIZES]
    returned = probe.call(cases[0])
    if not isinstance(returned, Tensor) or returned.dim() != 4 or returned.shape[:2] != cases[0][0].shape[:2]:
        raise NotThisKind
    out = convs[-1].out_channels
    pools = of_type(list(chain), *POOLS)
    rest = [layer for layer in chain if layer not in pools]
    orders = [tuple(layer.path for layer in order) for order in ([*pools, *rest], chain)]
    builds = [
        partial(FusedDynamicKernels, chain=order, operator=operator, options=options)
        for order in dict.fromkeys(orders)
        for operator, options in _forms(out, channels, SIZES[0], tuple(returned.shape[2:]))
    ]
    declared = _declared(module, out)
    if declared is not None:
        raise ProbeError(f"kernel side must be one of {', '.join(map(str, SIDES))}, got {declared}")
    return first_equal(probe, builds, cases)


def _forms(
    out: int, channels: int, size: tuple[int, int], returned: tuple[int, ...]
) -> Iterator[tuple[Callable[..., Tensor], dict[str, Any]]]:
    """Operators and options that give an output of this size from so many kernel channels."""
    for k in _sides(out):
        for r in SCALES:
            groups = out // (k * k)
            if tuple(n * r for n in size) == returned and groups % (r * r) == 0 and channels % (groups // (r * r)) == 0:
                options = {"kernel_size": k, "groups": groups // (r * r)}
                if r == 1:
                    for order in ("blocked", "interleaved"):
                        yield grouped_spatial_fusion, {**options, "group_order": order}
                for name in BY_USE:
                    yield dynamic_upsample, {**options, "scale": r, "normalization": name}
            elif r > 1 and tuple(-(-n // r) for n in size) == returned and channels % groups == 0:
                for name in BY_USE:
                    yield dynamic_downsample, {"kernel_size": k, "groups": groups, "scale": r, "normalization": name}
