# SPDX-License-Identifier: Apache-2.0
"""The OpSpecs of the dynamic-kernel operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import ops
from ..reference.dynamic_downsample import dynamic_downsample_reference
from ..reference.dynamic_upsample import dynamic_upsample_reference
from ..reference.grouped_spatial_fusion import grouped_spatial_fusion_reference
from .specs import OpSpec, Sample, bad, spoil

Shape = tuple[int, int, int, int]


def _terms(kernels: str) -> Callable[[Sample], Mapping[str, int]]:
    def terms(sample: Sample) -> dict[str, int]:
        options, (_, channels, _, _) = sample.options, sample.shapes[0]
        taps = options["kernel_size"] ** 2
        readers = taps * (options.get("scale", 1) ** 2 if "layout" in options else 1)
        return {"y": taps, "x": readers, kernels: taps + channels // options.get("groups", 1)}

    return terms


Errors = tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]


def shared_errors(op: str) -> Errors:
    """What all of them ask of x, of the groups and of the backend, on 3 channels."""
    return (
        (spoil(x="photo"), f"{op}: x must be a tensor, got str"),
        (spoil(x=lambda t: t[0]), rf"{op}: x must be \(N, C, H, W\), got 3 dimensions"),
        (spoil(x=Tensor.int), f"{op}: x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (spoil(x=lambda t: t[:, :0]), f"{op}: x must have C, H and W of at least 1, got .2, 0,"),
        (spoil(groups=2), f"{op}: groups must divide the 3 channels of x, got 2"),
        (spoil(groups=0), f"{op}: groups must divide the 3 channels of x, got 0"),
        (spoil(backend="cudnn"), f"{op}: backend must be one of reference, cpu, cuda, triton, got 'cudnn'"),
    )


def same_errors(op: str, name: str) -> Errors:
    """A tensor beside x must be one, of its dtype, on its device."""
    return (
        (spoil(**{name: None}), f"{op}: {name} must be a tensor, got NoneType"),
        (spoil(**{name: Tensor.double}), f"{op}: {name} must have the dtype of x, torch.float32, got torch.float64"),
        (spoil(**{name: lambda t: t.to("meta")}), f"{op}: {name} must be on the device of x, cpu, got meta"),
    )


def _errors(op: str, kernels: str, wrong_size: int) -> Errors:
    channels = "channels" if op == "dynamic_upsample" else r"groups \* k \* k" if op == "dynamic_downsample" else "channels"
    return (
        *shared_errors(op),
        *same_errors(op, kernels),
        (spoil(**{kernels: lambda t: t[0]}), rf"{op}: {kernels} must be \(N, {channels}, h, w\), got 3 dimensions"),
        (spoil(**{kernels: lambda t: t[:, :-1]}), rf"{op}: {kernels} must be .* got \(2, {wrong_size}, "),
        (spoil(**{kernels: lambda t: t[:1]}), rf"{op}: {kernels} must be .* got \(1, "),
        (spoil(**{kernels: lambda t: t[..., :1]}), rf"{op}: .*{kernels} must be .* got \("),
    )


_BAD = (
    bad(0, lambda x: x[0]),
    bad(0, lambda x: x[:1]),
    bad(0, lambda x: x[..., :2]),
    bad(0, lambda x: x[:, :2]),
    bad(1, lambda a: a[0]),
    bad(1, lambda a: a[..., :1]),
    bad(1, lambda a: a[:, :2]),
    bad(1, lambda a: a.double()),
    bad(2, 0),
    bad(2, 64),
    bad(3, 0),
    bad(3, 2),
)

# --- grouped_spatial_fusion -------------------------------------------------------------------------------------------

_FUSION = "grouped_spatial_fusion"
# (N, C, H, W), kernel size, groups, interleaved: the smallest, odd, around SIMD vectors along w and c, empty.
_FUSION_CASES: tuple[tuple[Shape, int, int, bool], ...] = (
    ((2, 3, 8, 6), 3, 3, False),
    ((1, 1, 1, 1), 7, 1, False),
    ((2, 3, 7, 5), 5, 3, True),
    ((2, 3, 7, 5), 3, 1, False),
    ((2, 5, 10, 9), 1, 5, False),
    ((1, 4, 5, 33), 3, 2, True),
    ((1, 32, 4, 16), 3, 2, False),
    ((1, 6, 3, 17), 7, 3, True),
    ((1, 51, 3, 5), 5, 3, False),
    ((1, 9, 2, 70), 3, 1, False),
    ((1, 2, 37, 15), 7, 1, False),
    ((0, 4, 3, 3), 3, 2, False),
)


def _fusion_samples() -> tuple[Sample, ...]:
    samples = []
    for (n, c, h, w), k, groups, interleaved in _FUSION_CASES:
        order = "interleaved" if interleaved else "blocked"
        options = {"kernel_size": k, "groups": groups, "group_order": order}
        samples.append(Sample(f"{n}x{c}x{h}x{w}-k{k}-g{groups}-{order}", ((n, c, h, w), (n, groups * k * k, h, w)), options))
    return tuple(samples)


def _fusion_arguments(x: Tensor, kernels: Tensor, groups: int, kernel_size: int, group_order: str) -> tuple[Any, ...]:
    return x, kernels, kernel_size, groups, group_order


GROUPED_SPATIAL_FUSION = OpSpec(
    name=_FUSION,
    function=ops.grouped_spatial_fusion,
    tensors=("x", "kernels"),
    arguments=_fusion_arguments,
    reference=grouped_spatial_fusion_reference,
    outputs=("y",),
    terms=_terms("kernels"),
    samples=_fusion_samples(),
    errors=(
        *_errors(_FUSION, "kernels", 74),
        (spoil(kernel_size=2), f"{_FUSION}: kernel_size must be one of 1, 3, 5, 7, got 2"),
        (spoil(group_order="mixed"), f"{_FUSION}: group_order must be one of blocked, interleaved, got 'mixed'"),
    ),
    bad_arguments=(*_BAD, bad(4, "mixed")),
    backward_options=lambda options: (options["kernel_size"], options["groups"], options["group_order"]),
)

# --- dynamic_upsample -------------------------------------------------------------------------------------------------

_UP = "dynamic_upsample"
# (N, C, h, w) of x, kernel size, groups, scale, normalization, dense, output size. Sizes beyond scale * (h, w) make cells that
# lie outside x; those below cut sub-positions off.
_UP_CASES: tuple[tuple[Shape, int, int, int, str, bool, tuple[int, int] | None], ...] = (
    ((2, 3, 4, 3), 3, 1, 2, "softmax", False, None),
    ((1, 1, 1, 1), 5, 1, 2, "sigmoid", False, None),
    ((2, 3, 7, 5), 3, 3, 2, "sigmoid_softmax", False, (13, 9)),
    ((2, 3, 7, 5), 5, 1, 3, "softmax_sigmoid", False, (22, 15)),
    ((2, 5, 10, 9), 1, 5, 1, "sigmoid", False, None),
    ((1, 4, 3, 16), 3, 2, 2, "softmax", True, None),
    ((1, 2, 13, 14), 3, 1, 2, "none", True, (27, 27)),
    ((1, 10, 3, 17), 5, 2, 2, "softmax", False, None),
    ((1, 12, 2, 33), 7, 1, 2, "sigmoid_softmax", False, None),
    ((1, 67, 3, 4), 3, 1, 2, "softmax", False, None),
    ((1, 6, 5, 6), 7, 3, 1, "softmax", False, None),
    ((1, 3, 2, 18), 3, 1, 3, "none", True, (6, 53)),
    ((1, 64, 3, 5), 3, 4, 4, "sigmoid", False, None),
    ((1, 3, 2, 5), 1, 1, 2, "sigmoid_softmax", False, None),  # the only tap weighs exactly 1
    ((0, 4, 3, 3), 3, 2, 2, "softmax", False, None),
)


def _up_sample(
    x: Shape, k: int, groups: int, scale: int, how: str, dense: bool, size: tuple[int, int] | None, spread: float = 1.0
) -> Sample:
    n, c, h, w = x
    height, width = size or (h * scale, w * scale)
    options: dict[str, Any] = {"kernel_size": k, "groups": groups, "scale": scale, "normalization": how}
    options["layout"] = "dense" if dense else "shuffled"
    if size is not None:
        options["output_size"] = size
    if dense:
        logits = (n, groups * k * k, height, width)
    else:
        logits = (n, groups * k * k * scale * scale, -(-height // scale), -(-width // scale))
    name = f"{n}x{c}x{h}x{w}-to-{height}x{width}-k{k}-g{groups}-r{scale}-{how}{'-dense' * dense}{'-large' * (spread > 1)}"
    return Sample(name, (x, logits), options, {"logits": spread}, smooth=spread == 1)


def _up_arguments(
    x: Tensor,
    logits: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    layout: str,
    output_size: tuple[int, int] | None = None,
) -> tuple[Any, ...]:
    size = output_size or (x.shape[2] * scale, x.shape[3] * scale)
    return x, logits, kernel_size, groups, scale, normalization, layout == "dense", *size


def _up_backward_options(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of the samples that name their output size."""
    dense = options["layout"] == "dense"
    return (*(options[n] for n in ("kernel_size", "groups", "scale", "normalization")), dense, *options["output_size"])


DYNAMIC_UPSAMPLE = OpSpec(
    name=_UP,
    function=ops.dynamic_upsample,
    tensors=("x", "logits"),
    arguments=_up_arguments,
    reference=dynamic_upsample_reference,
    outputs=("y",),
    terms=_terms("logits"),
    samples=(
        *(_up_sample(*case) for case in _UP_CASES),
        *(
            _up_sample((1, 2, 3, 17), 3, 1, 2, how, False, None, 60.0)
            for how in ("softmax", "sigmoid_softmax", "softmax_sigmoid")
        ),
    ),
    errors=(
        *_errors(_UP, "logits", 107),
        (spoil(kernel_size=4), f"{_UP}: kernel_size must be one of 1, 3, 5, 7, got 4"),
        (spoil(scale=5), f"{_UP}: scale must be one of 1, 2, 3, 4, got 5"),
        (spoil(normalization="sofmax"), f"{_UP}: normalization must be one of none, sigmoid, .*, got 'sofmax'"),
        (spoil(layout="flat"), f"{_UP}: layout must be one of shuffled, dense, got 'flat'"),
        (spoil(group_layout="mixed"), f"{_UP}: group_layout must be one of group_major, position_major, got 'mixed'"),
        (spoil(output_size=(16, 9)), rf"{_UP}: output_size must be within \(13..15, 9..11\), got \(16, 9\)"),
        (spoil(output_size=(13, 8)), rf"{_UP}: output_size must be within \(13..15, 9..11\), got \(13, 8\)"),
        (spoil(output_size=(13,)), rf"{_UP}: output_size must be \(H, W\), got \(13,\)"),
    ),
    bad_arguments=(*_BAD, bad(4, 5), bad(4, 0), bad(5, "sofmax"), bad(6, True), bad(7, 16), bad(7, 12), bad(8, 12), bad(8, 0)),
    backward_options=_up_backward_options,
)


# --- dynamic_downsample -----------------------------------------------------------------------------------------------

_DOWN = "dynamic_downsample"
# (N, C, H, W), kernel size, groups, scale, normalization, (h, w): even and odd windows, gaps between them, odd sizes rounded up
# and down.
_DOWN_CASES: tuple[tuple[Shape, int, int, int, str, tuple[int, int]], ...] = (
    ((2, 3, 8, 6), 4, 1, 2, "softmax", (4, 3)),
    ((1, 1, 1, 1), 2, 1, 2, "sigmoid", (1, 1)),
    ((2, 3, 7, 5), 6, 3, 2, "softmax", (4, 3)),
    ((2, 3, 7, 5), 5, 1, 2, "sigmoid_softmax", (3, 2)),
    ((2, 5, 10, 9), 3, 5, 3, "softmax_sigmoid", (4, 3)),
    ((1, 4, 6, 33), 6, 2, 2, "softmax", (3, 17)),
    ((1, 2, 9, 64), 14, 1, 4, "softmax", (3, 16)),
    ((1, 35, 5, 36), 5, 1, 2, "none", (3, 18)),
    ((1, 2, 27, 27), 6, 1, 2, "sigmoid_softmax", (13, 13)),
    ((1, 6, 5, 6), 13, 3, 1, "softmax", (5, 6)),
    ((1, 3, 9, 70), 2, 1, 4, "softmax", (2, 18)),
    ((1, 34, 6, 5), 4, 2, 3, "sigmoid", (2, 2)),
    ((0, 4, 4, 4), 4, 2, 2, "softmax", (2, 2)),
)


def _down_sample(x: Shape, k: int, groups: int, scale: int, how: str, size: tuple[int, int], spread: float = 1.0) -> Sample:
    n, c, height, width = x
    options = {"kernel_size": k, "groups": groups, "scale": scale, "normalization": how}
    name = f"{n}x{c}x{height}x{width}-to-{size[0]}x{size[1]}-k{k}-g{groups}-r{scale}-{how}{'-large' * (spread > 1)}"
    return Sample(name, (x, (n, groups * k * k, *size)), options, {"logits": spread}, smooth=spread == 1)


def _down_arguments(
    x: Tensor, logits: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> tuple[Any, ...]:
    return x, logits, kernel_size, groups, scale, normalization


DYNAMIC_DOWNSAMPLE = OpSpec(
    name=_DOWN,
    function=ops.dynamic_downsample,
    tensors=("x", "logits"),
    arguments=_down_arguments,
    reference=dynamic_downsample_reference,
    outputs=("y",),
    terms=_terms("logits"),
    samples=(
        *(_down_sample(*case) for case in _DOWN_CASES),
        *(_down_sample((1, 2, 6, 38), 6, 1, 2, how, (3, 19), 60.0) for how in ("softmax", "softmax_sigmoid")),
    ),
    errors=(
        *_errors(_DOWN, "logits", 107),
        (spoil(kernel_size=15), f"{_DOWN}: kernel_size must be an integer within 1..14, got 15"),
        (spoil(kernel_size=3.0), f"{_DOWN}: kernel_size must be an integer within 1..14, got 3.0"),
        (spoil(scale=0), f"{_DOWN}: scale must be one of 1, 2, 3, 4, got 0"),
        (spoil(normalization="sofmax"), f"{_DOWN}: normalization must be one of none, sigmoid, .*, got 'sofmax'"),
        (spoil(group_layout="mixed"), f"{_DOWN}: group_layout must be one of group_major, position_major, got 'mixed'"),
    ),
    bad_arguments=(*_BAD, bad(4, 5), bad(4, 0), bad(5, "sofmax")),
    backward_options=lambda options: tuple(options[n] for n in ("kernel_size", "groups", "scale", "normalization")),
)

WINDOW_SPECS: dict[str, OpSpec] = {spec.name: spec for spec in (GROUPED_SPATIAL_FUSION, DYNAMIC_UPSAMPLE, DYNAMIC_DOWNSAMPLE)}
