# SPDX-License-Identifier: Apache-2.0
"""The OpSpecs of the affinity-aware operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .. import ops
from ..reference.affinity_downsample import affinity_downsample_reference
from ..reference.affinity_upsample import affinity_upsample_reference
from .specs import OpSpec, Sample, bad, spoil
from .window_specs import Errors, Shape, same_errors, shared_errors


def _sample(
    x: Shape, low: tuple[int, int], subs: int, rank: int, shared: bool, spread: float, options: dict[str, Any]
) -> Sample:
    n, channels = x[0], options["groups"] * options["kernel_size"] ** 2 * subs
    shapes = (x, (n, rank, *low), (1 if shared else n, rank, channels))
    size = "x".join(map(str, options.get("output_size", low)))
    name = "x".join(map(str, x)) + f"-to-{size}-k{options['kernel_size']}-g{options['groups']}-r{options['scale']}-d{rank}"
    name += f"-{options['normalization']}{'-shared' * shared}{'-large' * (spread > 1)}"
    return Sample(name, shapes, options, {"a": spread}, smooth=spread == 1)


def _terms(subs: Callable[[Sample], int]) -> Callable[[Sample], Mapping[str, int]]:
    def terms(sample: Sample) -> dict[str, int]:
        (_, channels, _, _), (n, rank, h, w), (rows, _, outputs) = sample.shapes
        taps = sample.options["kernel_size"] ** 2
        per_logit = taps + channels // sample.options["groups"]
        cells = h * w * (n if rows == 1 else 1)
        return {"y": taps + rank, "x": taps * subs(sample) + rank, "a": outputs + per_logit, "p": cells + per_logit}

    return terms


def _errors(op: str, channels: int) -> Errors:
    return (
        *shared_errors(op),
        *same_errors(op, "a"),
        *same_errors(op, "p"),
        (spoil(a=lambda t: t[0]), rf"{op}: a must be \(N, d, h, w\), got 3 dimensions"),
        (spoil(a=lambda t: t[:, :0]), rf"{op}: a must have a rank d within 1..16, got 0"),
        (spoil(a=lambda t: t.repeat(1, 9, 1, 1)), rf"{op}: a must have a rank d within 1..16, got 18"),
        (spoil(a=lambda t: t[:1]), rf"{op}: a must be .* got \(1, 2, "),
        (spoil(a=lambda t: t[..., :1]), rf"{op}: .*a must be .* got \("),
        (spoil(p=lambda t: t[0]), rf"{op}: p must be \(N or 1, d, channels\), got 2 dimensions"),
        (spoil(p=lambda t: t[:, :1]), rf"{op}: p must be \(2 or 1, 2, {channels}\), got \(1, 1, {channels}\)"),
        (spoil(p=lambda t: t[..., :-1]), rf"{op}: p must be \(2 or 1, 2, {channels}\), got \(1, 2, {channels - 1}\)"),
        (spoil(p=lambda t: t.repeat(3, 1, 1)), rf"{op}: p must be \(2 or 1, 2, {channels}\), got \(3, 2, {channels}\)"),
        (spoil(scale=5), f"{op}: scale must be one of 1, 2, 3, 4, got 5"),
        (spoil(normalization="sofmax"), f"{op}: normalization must be one of none, sigmoid, .*, got 'sofmax'"),
    )


_BAD = (
    bad(0, lambda x: x[0]),
    bad(0, lambda x: x[:1]),
    bad(0, lambda x: x[..., :2]),
    bad(0, lambda x: x[:, :2]),
    bad(1, lambda a: a[0]),
    bad(1, lambda a: a[:, :1]),
    bad(1, lambda a: a[..., :1]),
    bad(1, lambda a: a.repeat(1, 9, 1, 1)),
    bad(1, lambda a: a.double()),
    bad(2, lambda p: p[0]),
    bad(2, lambda p: p[:, :, :-1]),
    bad(2, lambda p: p.repeat(3, 1, 1)),
    bad(2, lambda p: p.double()),
    bad(3, 0),
    bad(3, 64),
    bad(4, 0),
    bad(4, 2),
    bad(5, 5),
    bad(5, 0),
    bad(6, "sofmax"),
)

# --- affinity_upsample ------------------------------------------------------------------------------------------------

_UP = "affinity_upsample"
# (N, C, h, w) of x, kernel size, groups, scale, normalization, output size, rank, one generator for all samples.
_UP_CASES: tuple[tuple[Shape, int, int, int, str, tuple[int, int] | None, int, bool], ...] = (
    ((2, 3, 4, 3), 3, 1, 2, "sigmoid_softmax", None, 1, False),
    ((1, 1, 1, 1), 5, 1, 2, "sigmoid", None, 1, True),
    ((2, 3, 7, 5), 3, 3, 2, "sigmoid_softmax", (13, 9), 2, True),
    ((2, 3, 7, 5), 5, 1, 3, "softmax_sigmoid", (22, 15), 1, False),
    ((2, 5, 10, 9), 1, 5, 1, "sigmoid", None, 16, True),
    ((1, 4, 3, 16), 1, 2, 4, "sigmoid", None, 3, True),
    ((1, 4, 2, 33), 7, 1, 2, "sigmoid_softmax", None, 1, True),
    ((1, 35, 3, 4), 3, 1, 2, "softmax", None, 4, False),
    ((1, 32, 3, 5), 3, 2, 3, "sigmoid_softmax", None, 2, True),
    ((3, 2, 5, 18), 3, 1, 2, "none", (9, 35), 1, True),
    ((1, 4, 3, 5), 1, 2, 2, "sigmoid_softmax", None, 2, True),  # the only tap weighs exactly 1
    ((0, 4, 3, 3), 3, 2, 2, "softmax", None, 2, True),
)


def _up_sample(
    x: Shape,
    k: int,
    groups: int,
    scale: int,
    how: str,
    size: tuple[int, int] | None,
    rank: int,
    shared: bool,
    spread: float = 1.0,
) -> Sample:
    options: dict[str, Any] = {"kernel_size": k, "groups": groups, "scale": scale, "normalization": how}
    if size is not None:
        options["output_size"] = size
    height, width = size or (x[2] * scale, x[3] * scale)
    return _sample(x, (-(-height // scale), -(-width // scale)), scale * scale, rank, shared, spread, options)


def _up_arguments(
    x: Tensor,
    a: Tensor,
    p: Tensor,
    kernel_size: int,
    groups: int,
    scale: int,
    normalization: str,
    output_size: tuple[int, int] | None = None,
) -> tuple[Any, ...]:
    size = output_size or (x.shape[2] * scale, x.shape[3] * scale)
    return x, a, p, kernel_size, groups, scale, normalization, *size


def _options(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of the samples of upsampling, those that name their output size."""
    named = (options[name] for name in ("kernel_size", "groups", "scale", "normalization"))
    return *named, *options.get("output_size", ())


AFFINITY_UPSAMPLE = OpSpec(
    name=_UP,
    function=ops.affinity_upsample,
    tensors=("x", "a", "p"),
    arguments=_up_arguments,
    reference=affinity_upsample_reference,
    outputs=("y",),
    terms=_terms(lambda sample: sample.options["scale"] ** 2),
    samples=(
        *(_up_sample(*case) for case in _UP_CASES),
        *(
            _up_sample((1, 2, 3, 17), 3, 1, 2, how, None, 1, True, 60.0)
            for how in ("softmax", "sigmoid_softmax", "softmax_sigmoid")
        ),
    ),
    errors=(
        *_errors(_UP, 108),
        (spoil(kernel_size=4), f"{_UP}: kernel_size must be one of 1, 3, 5, 7, got 4"),
        (spoil(output_size=(16, 9)), rf"{_UP}: output_size must be within \(13..15, 9..11\), got \(16, 9\)"),
        (spoil(output_size=(13, 8)), rf"{_UP}: output_size must be within \(13..15, 9..11\), got \(13, 8\)"),
        (spoil(output_size=(13,)), rf"{_UP}: output_size must be \(H, W\), got \(13,\)"),
    ),
    bad_arguments=(*_BAD, bad(3, 2), bad(7, 16), bad(7, 12), bad(8, 12), bad(8, 0)),
    backward_options=_options,
)

# --- affinity_downsample ----------------------------------------------------------------------------------------------

_DOWN = "affinity_downsample"
# (N, C, H, W), kernel size, groups, scale, normalization, (h, w), rank, one generator for all samples.
_DOWN_CASES: tuple[tuple[Shape, int, int, int, str, tuple[int, int], int, bool], ...] = (
    ((2, 3, 8, 6), 4, 1, 2, "softmax", (4, 3), 1, False),
    ((1, 1, 1, 1), 2, 1, 2, "sigmoid", (1, 1), 1, True),
    ((2, 3, 7, 5), 6, 3, 2, "softmax", (4, 3), 2, True),
    ((2, 3, 7, 5), 5, 1, 2, "sigmoid_softmax", (3, 2), 1, False),
    ((2, 5, 10, 9), 3, 5, 3, "softmax_sigmoid", (4, 3), 3, True),
    ((1, 4, 6, 33), 6, 2, 2, "softmax", (3, 17), 1, True),
    ((1, 2, 9, 64), 14, 1, 4, "softmax", (3, 16), 1, True),
    ((3, 35, 5, 36), 5, 1, 2, "none", (3, 18), 2, True),
    ((1, 34, 6, 5), 4, 2, 3, "sigmoid", (2, 2), 16, True),
    ((0, 4, 4, 4), 4, 2, 2, "softmax", (2, 2), 1, True),
)


def _down_sample(
    x: Shape,
    k: int,
    groups: int,
    scale: int,
    how: str,
    size: tuple[int, int],
    rank: int,
    shared: bool,
    spread: float = 1.0,
) -> Sample:
    options = {"kernel_size": k, "groups": groups, "scale": scale, "normalization": how}
    return _sample(x, size, 1, rank, shared, spread, options)


def _down_arguments(
    x: Tensor, a: Tensor, p: Tensor, kernel_size: int, groups: int, scale: int, normalization: str
) -> tuple[Any, ...]:
    return x, a, p, kernel_size, groups, scale, normalization


AFFINITY_DOWNSAMPLE = OpSpec(
    name=_DOWN,
    function=ops.affinity_downsample,
    tensors=("x", "a", "p"),
    arguments=_down_arguments,
    reference=affinity_downsample_reference,
    outputs=("y",),
    terms=_terms(lambda sample: 1),
    samples=(
        *(_down_sample(*case) for case in _DOWN_CASES),
        *(_down_sample((1, 2, 6, 38), 6, 1, 2, how, (3, 19), 1, True, 60.0) for how in ("softmax", "softmax_sigmoid")),
    ),
    errors=(
        *_errors(_DOWN, 108),
        (spoil(kernel_size=15), f"{_DOWN}: kernel_size must be an integer within 1..14, got 15"),
        (spoil(kernel_size=3.0), f"{_DOWN}: kernel_size must be an integer within 1..14, got 3.0"),
    ),
    bad_arguments=_BAD,
    backward_options=_options,
)

AFFINITY_SPECS: dict[str, OpSpec] = {spec.name: spec for spec in (AFFINITY_UPSAMPLE, AFFINITY_DOWNSAMPLE)}
