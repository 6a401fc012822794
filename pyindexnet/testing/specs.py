# SPDX-License-Identifier: Apache-2.0
"""One :class:`OpSpec` per operator. Adding one to :data:`SPECS` puts the operator under all shared tests and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .. import ops
from ..reference.indexed_pool import indexed_pool_reference
from ..reference.indexed_pool_skip import indexed_pool_skip_reference
from ..reference.indexed_upsample import indexed_upsample_reference
from ..reference.normalization import NORMALIZATIONS


@dataclass(frozen=True)
class Sample:
    """Shapes and options of one call.

    Attributes:
        id: unique within the operator; seeds the values.
        shapes: of the tensors, in the order of ``OpSpec.tensors``.
        options: keyword arguments of the public function.
        scales: standard deviation of the values by tensor name; 1 by default.
    """

    id: str
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any]
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OpSpec:
    """What the shared tests, ``pyindexnet check`` and the benchmarks need to know about an operator.

    Attributes:
        name: operator and dispatcher name.
        function: public function, ``function(*tensors, backend=..., **options)``.
        tensors: names of the tensor arguments; all are differentiable.
        arguments: positional arguments of the dispatcher op from tensors and options.
        reference: the forward in plain PyTorch, the dispatcher's arguments; autograd through it gives the gold gradients.
        outputs: names of the outputs.
        terms: number of values summed per output element and per gradient element, by name.
        samples: for tests; small.
        errors: (bad call, pattern of the message); a bad call takes a dict of tensors and options and spoils it.
    """

    name: str
    function: Callable[..., Any]
    tensors: tuple[str, ...]
    arguments: Callable[..., tuple[Any, ...]]
    reference: Callable[..., Any]
    outputs: tuple[str, ...]
    terms: Callable[[Sample], Mapping[str, int]]
    samples: tuple[Sample, ...]
    errors: tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]

    def default_options(self) -> dict[str, Any]:
        return dict(self.samples[0].options)


# --- indexed operators ------------------------------------------------------------------------------------------------

# (N, C, H, W), ratio, holistic: the smallest, odd, around SIMD vectors and thread blocks along w and c, empty.
_INDEXED_CASES = (
    ((2, 3, 8, 6), 2, False),
    ((1, 1, 1, 1), 2, False),
    ((2, 3, 7, 5), 2, False),
    ((2, 3, 7, 5), 2, True),
    ((1, 2, 33, 17), 3, False),
    ((2, 5, 10, 9), 4, False),
    ((1, 4, 9, 33), 4, True),
    ((1, 3, 6, 3), 3, True),
    ((1, 2, 4, 62), 2, False),
    ((1, 2, 3, 64), 2, False),
    ((1, 3, 4, 67), 2, True),
    ((1, 32, 4, 5), 2, False),
    ((2, 35, 5, 4), 2, True),
    ((1, 17, 6, 9), 3, False),
    ((0, 3, 4, 4), 2, False),
)


def _indexed_samples(low_first: bool, output_size: bool) -> tuple[Sample, ...]:
    samples = []
    for number, ((n, c, height, width), r, holistic) in enumerate(_INDEXED_CASES):
        h, w = -(-height // r), -(-width // r)
        x = (n, c, h, w) if low_first else (n, c, height, width)
        logits = (n, 1 if holistic else c, r * r, h, w)
        # Every normalisation on the odd-sized cases, one in turn on the others.
        hows = NORMALIZATIONS if number in (2, 3) else (NORMALIZATIONS[number % len(NORMALIZATIONS)],)
        for how in hows:
            options: dict[str, Any] = {"ratio": r, "normalization": how}
            if output_size:
                options["output_size"] = (height, width)
            kind = "holistic" if holistic else "depthwise"
            samples.append(Sample(f"{n}x{c}x{height}x{width}-r{r}-{kind}-{how}", (x, logits), options))
    # Logits far out: exp must neither overflow nor lose the sum.
    for how in NORMALIZATIONS[1:]:
        options = {"ratio": 2, "normalization": how} | ({"output_size": (6, 34)} if output_size else {})
        shapes = ((1, 2, 3, 17) if low_first else (1, 2, 6, 34), (1, 2, 4, 3, 17))
        samples.append(Sample(f"1x2x6x34-r2-large-{how}", shapes, options, {"logits": 60.0}))
    return tuple(samples)


def _indexed_terms(sample: Sample) -> dict[str, int]:
    k = sample.options["ratio"] ** 2
    channels, holistic = sample.shapes[0][1], sample.shapes[1][1] == 1
    return {"y": k, "pooled": k, "skip": k, "x": k, "logits": k + (channels if holistic else 0)}


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """A bad call with arguments replaced; callables get the good value."""

    def spoil(call: dict[str, Any]) -> None:
        for name, value in changes.items():
            call[name] = value(call[name]) if callable(value) else value

    return spoil


def _indexed_errors(name: str) -> tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]:
    return (
        (_spoil(x="photo"), f"{name}: x must be a tensor, got str"),
        (_spoil(logits=None), f"{name}: logits must be a tensor, got NoneType"),
        (_spoil(x=lambda t: t[0]), rf"{name}: x must be \(N, C, H, W\), got 3 dimensions"),
        (_spoil(logits=lambda t: t[0]), rf"{name}: logits must be \(N, Ci, K, h, w\), got 4 dimensions"),
        (_spoil(x=Tensor.int), f"{name}: x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (_spoil(logits=Tensor.double), f"{name}: logits must have the dtype of x, torch.float32, got torch.float64"),
        (_spoil(logits=lambda t: t.to("meta")), f"{name}: logits must be on the device of x, cpu, got meta"),
        (_spoil(logits=lambda t: t[:, :, :3]), rf"{name}: logits must be .* got \(2, 3, 3, 4, 3\)"),
        (_spoil(logits=lambda t: t[:, :2]), rf"{name}: logits must be .* got \(2, 2, 4, 4, 3\)"),
        (_spoil(logits=lambda t: t[:1]), rf"{name}: logits must be .* got \(1, 3, 4, 4, 3\)"),
        (_spoil(logits=lambda t: t[..., :2]), rf"{name}: logits must be .* got \(2, 3, 4, 4, 2\)"),
        (_spoil(x=lambda t: t[:, :0]), f"{name}: x must have C, H and W of at least 1, got .2, 0,"),
        (_spoil(ratio=5), f"{name}: ratio must be one of 2, 3, 4, got 5"),
        (_spoil(normalization="sofmax"), f"{name}: normalization must be one of none, sigmoid, .*, got 'sofmax'"),
        (_spoil(backend="cudnn"), f"{name}: backend must be one of reference, cpu, cuda, triton, got 'cudnn'"),
    )


def _pool_arguments(x: Tensor, logits: Tensor, ratio: int, normalization: str) -> tuple[Any, ...]:
    return x, logits, ratio, normalization


def _upsample_arguments(
    x: Tensor, logits: Tensor, ratio: int, normalization: str, output_size: tuple[int, int]
) -> tuple[Any, ...]:
    return x, logits, ratio, normalization, *output_size


INDEXED_POOL = OpSpec(
    name="indexed_pool",
    function=ops.indexed_pool,
    tensors=("x", "logits"),
    arguments=_pool_arguments,
    reference=indexed_pool_reference,
    outputs=("y",),
    terms=_indexed_terms,
    samples=_indexed_samples(low_first=False, output_size=False),
    errors=_indexed_errors("indexed_pool"),
)

INDEXED_UPSAMPLE = OpSpec(
    name="indexed_upsample",
    function=ops.indexed_upsample,
    tensors=("x", "logits"),
    arguments=_upsample_arguments,
    reference=indexed_upsample_reference,
    outputs=("y",),
    terms=_indexed_terms,
    samples=_indexed_samples(low_first=True, output_size=True),
    errors=(
        *_indexed_errors("indexed_upsample"),
        (_spoil(output_size=(9, 6)), r"indexed_upsample: output_size must be within \(7..8, 5..6\), got \(9, 6\)"),
        (_spoil(output_size=(8, 4)), r"indexed_upsample: output_size must be within \(7..8, 5..6\), got \(8, 4\)"),
        (_spoil(output_size=(8,)), r"indexed_upsample: output_size must be \(H, W\), got \(8,\)"),
    ),
)

INDEXED_POOL_SKIP = OpSpec(
    name="indexed_pool_skip",
    function=ops.indexed_pool_skip,
    tensors=("x", "logits"),
    arguments=_pool_arguments,
    reference=indexed_pool_skip_reference,
    outputs=("pooled", "skip"),
    terms=_indexed_terms,
    samples=_indexed_samples(low_first=False, output_size=False),
    errors=_indexed_errors("indexed_pool_skip"),
)

SPECS: dict[str, OpSpec] = {spec.name: spec for spec in (INDEXED_POOL, INDEXED_UPSAMPLE, INDEXED_POOL_SKIP)}
