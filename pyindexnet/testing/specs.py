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
from ..reference.non_background_pool import non_background_pool_reference
from ..reference.normalization import NORMALIZATIONS


@dataclass(frozen=True)
class Sample:
    """Shapes and options of one call.

    Attributes:
        id: unique within the operator; seeds the values.
        shapes: of the tensors, in the order of ``OpSpec.tensors``; the last ones may be missing where they are optional.
        options: keyword arguments of the public function.
        scales: standard deviation of the values by tensor name; 1 by default.
        smooth: whether finite differences in float64 can tell the derivatives.
    """

    id: str
    shapes: tuple[tuple[int, ...], ...]
    options: Mapping[str, Any]
    scales: Mapping[str, float] = field(default_factory=dict)
    smooth: bool = True


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
        bad_arguments: each spoils a list of ``arguments``: the dispatcher op must raise, whatever the backend.
        backward_options: what follows the gradients and tensors in the backward op, before the flags of the needed gradients.
        values: by tensor name, what turns normally distributed numbers into values that the operator is meant for.
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
    bad_arguments: tuple[Callable[[list[Any]], None], ...]
    backward_options: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    values: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def names(self, sample: Sample) -> tuple[str, ...]:
        """The tensors that a sample has."""
        return self.tensors[: len(sample.shapes)]

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
        if (height, width) == (1, 1):
            hows = (*hows, "sigmoid_softmax")  # one position is present: its weight is 1 exactly
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
        samples.append(Sample(f"1x2x6x34-r2-large-{how}", shapes, options, {"logits": 60.0}, smooth=False))
    return tuple(samples)


def _indexed_terms(sample: Sample) -> dict[str, int]:
    k = sample.options["ratio"] ** 2
    channels, holistic = sample.shapes[0][1], sample.shapes[1][1] == 1
    return {"y": k, "pooled": k, "skip": k, "x": k, "logits": k + (channels if holistic else 0)}


def spoil(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """A bad call with arguments replaced; callables get the good value."""

    def spoil(call: dict[str, Any]) -> None:
        for name, value in changes.items():
            call[name] = value(call[name]) if callable(value) else value

    return spoil


def _indexed_errors(name: str) -> tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]:
    return (
        (spoil(x="photo"), f"{name}: x must be a tensor, got str"),
        (spoil(logits=None), f"{name}: logits must be a tensor, got NoneType"),
        (spoil(x=lambda t: t[0]), rf"{name}: x must be \(N, C, H, W\), got 3 dimensions"),
        (spoil(logits=lambda t: t[0]), rf"{name}: logits must be \(N, Ci, K, h, w\), got 4 dimensions"),
        (spoil(x=Tensor.int), f"{name}: x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (spoil(logits=Tensor.double), f"{name}: logits must have the dtype of x, torch.float32, got torch.float64"),
        (spoil(logits=lambda t: t.to("meta")), f"{name}: logits must be on the device of x, cpu, got meta"),
        (spoil(logits=lambda t: t[:, :, :3]), rf"{name}: logits must be .* got \(2, 3, 3, 4, 3\)"),
        (spoil(logits=lambda t: t[:, :2]), rf"{name}: logits must be .* got \(2, 2, 4, 4, 3\)"),
        (spoil(logits=lambda t: t[:1]), rf"{name}: logits must be .* got \(1, 3, 4, 4, 3\)"),
        (spoil(logits=lambda t: t[..., :2]), rf"{name}: logits must be .* got \(2, 3, 4, 4, 2\)"),
        (spoil(x=lambda t: t[:, :0]), f"{name}: x must have C, H and W of at least 1, got .2, 0,"),
        (spoil(ratio=5), f"{name}: ratio must be one of 2, 3, 4, got 5"),
        (spoil(normalization="sofmax"), f"{name}: normalization must be one of none, sigmoid, .*, got 'sofmax'"),
        (spoil(backend="cudnn"), f"{name}: backend must be one of reference, cpu, cuda, triton, got 'cudnn'"),
    )


def bad(position: int, change: Any) -> Callable[[list[Any]], None]:
    """Replaces one positional argument; callables get the good value."""

    def spoil(arguments: list[Any]) -> None:
        arguments[position] = change(arguments[position]) if callable(change) else change

    return spoil


_INDEXED_BAD = (
    bad(0, lambda x: x[0]),
    bad(0, lambda x: x[:1]),
    bad(1, lambda a: a[0]),
    bad(1, lambda a: a[..., :1]),
    bad(1, lambda a: a[:, :2]),
    bad(1, lambda a: a.double()),
    bad(2, 7),
    bad(3, "sofmax"),
)


def _indexed_backward_options(options: Mapping[str, Any]) -> tuple[Any, ...]:
    return options["ratio"], options["normalization"]


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
    bad_arguments=_INDEXED_BAD,
    backward_options=_indexed_backward_options,
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
        (spoil(output_size=(9, 6)), r"indexed_upsample: output_size must be within \(7..8, 5..6\), got \(9, 6\)"),
        (spoil(output_size=(8, 4)), r"indexed_upsample: output_size must be within \(7..8, 5..6\), got \(8, 4\)"),
        (spoil(output_size=(8,)), r"indexed_upsample: output_size must be \(H, W\), got \(8,\)"),
    ),
    bad_arguments=_INDEXED_BAD,
    backward_options=_indexed_backward_options,
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
    bad_arguments=_INDEXED_BAD,
    backward_options=_indexed_backward_options,
)

# --- non-background pooling -------------------------------------------------------------------------------------------


def _soft_mask(t: Tensor) -> Tensor:
    """Weights in [0, 1], some of them 0 and some 1; the lower right quarter of a map of 64 pixels and more holds none."""
    height, width = t.shape[-2:]
    mask = (0.5 + 0.5 * t).clamp(0, 1)
    if height * width >= 64:
        mask[..., height // 2 :, width // 2 :] = 0
    return mask


def _non_background_samples() -> tuple[Sample, ...]:
    # The smallest, odd sizes, windows of 1 and beyond the map, around SIMD vectors and thread blocks along w, h and c, several
    # windows, long maps, empty.
    cases: tuple[tuple[tuple[int, int, int, int], int | tuple[int, ...], bool], ...] = (
        ((2, 3, 8, 6), 5, False),
        ((1, 1, 1, 1), 3, False),
        ((2, 3, 7, 5), (5, 3, 31), False),
        ((2, 3, 7, 5), 3, True),
        ((2, 5, 10, 9), 7, False),
        ((1, 4, 5, 6), (1, 15), True),
        ((1, 2, 33, 17), (11, 5), False),
        ((1, 36, 4, 5), (31, 17, 11, 5), False),
        ((1, 4, 12, 70), (31, 5), True),
        ((1, 2, 37, 3), (9, 31), False),
        ((1, 17, 9, 16), 3, False),
        ((1, 1, 2, 35), 11, False),
        ((1, 18, 11, 4), (5, 17), False),
        ((0, 4, 4, 4), (5, 3), False),
    )
    samples = []
    for (n, c, height, width), size, include in cases:
        soft = height * width < 64  # there a large eps, so that the derivatives are tame where a window holds no mask
        options = {"kernel_size": size, "eps": 0.1 if soft else 1e-6, "count_include_pad": include}
        name = "_".join(map(str, size)) if isinstance(size, tuple) else str(size)
        shapes = ((n, c, height, width), (n, 1, height, width))
        samples.append(Sample(f"{n}x{c}x{height}x{width}-k{name}{'-pad' * include}", shapes, options, smooth=soft))
    return tuple(samples)


def _non_background_terms(sample: Sample) -> dict[str, int]:
    (_, channels, height, width), _ = sample.shapes
    size = sample.options["kernel_size"]
    k = max(size) if isinstance(size, tuple) else size
    window = min(k, height) * min(k, width)
    return {"y": window, "x": window, "mask": (channels + 1) * window}


def _non_background_arguments(
    x: Tensor, mask: Tensor, kernel_size: int | tuple[int, ...], eps: float = 1e-6, count_include_pad: bool = False
) -> tuple[Any, ...]:
    return x, mask, list(kernel_size) if isinstance(kernel_size, tuple) else [kernel_size], eps, count_include_pad


_NBP = "non_background_pool"
_ODD = rf"{_NBP}: kernel_size must be an odd number or a tuple of them, got"

NON_BACKGROUND_POOL = OpSpec(
    name=_NBP,
    function=ops.non_background_pool,
    tensors=("x", "mask"),
    arguments=_non_background_arguments,
    reference=non_background_pool_reference,
    outputs=("y",),
    terms=_non_background_terms,
    samples=_non_background_samples(),
    errors=(
        (spoil(x="photo"), f"{_NBP}: x must be a tensor, got str"),
        (spoil(mask=None), f"{_NBP}: mask must be a tensor, got NoneType"),
        (spoil(x=lambda t: t[0]), rf"{_NBP}: x must be \(N, C, H, W\), got 3 dimensions"),
        (spoil(mask=lambda t: t[0]), rf"{_NBP}: mask must be \(N, 1, H, W\), got 3 dimensions"),
        (spoil(x=Tensor.int), f"{_NBP}: x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (spoil(mask=Tensor.double), f"{_NBP}: mask must have the dtype of x, torch.float32, got torch.float64"),
        (spoil(mask=lambda t: t.to("meta")), f"{_NBP}: mask must be on the device of x, cpu, got meta"),
        (spoil(mask=lambda t: t[:1]), rf"{_NBP}: mask must be \(2, 1, 7, 5\), got \(1, 1, 7, 5\)"),
        (spoil(mask=lambda t: t.expand(2, 3, 7, 5)), rf"{_NBP}: mask must be \(2, 1, 7, 5\), got \(2, 3, 7, 5\)"),
        (spoil(mask=lambda t: t[..., 1:]), rf"{_NBP}: mask must be \(2, 1, 7, 5\), got \(2, 1, 7, 4\)"),
        (spoil(x=lambda t: t[:, :0]), f"{_NBP}: x must have C, H and W of at least 1, got .2, 0,"),
        (spoil(kernel_size=4), f"{_ODD} 4"),
        (spoil(kernel_size=(5, -3, 1)), rf"{_ODD} \(5, -3, 1\)"),
        (spoil(kernel_size=()), rf"{_ODD} \(\)"),
        (spoil(kernel_size=(3,) * 17), f"{_NBP}: kernel_size must have at most 16 sizes, got 17"),
        (spoil(kernel_size=3.0), rf"{_ODD} 3\.0"),
        (spoil(kernel_size=True), f"{_ODD} True"),
        (spoil(kernel_size=(3, 5)), f"{_NBP}: x must have equal chunks of channels for 2 windows, got 3 channels"),
        (spoil(eps=0.0), rf"{_NBP}: eps must be a finite number above 0, got 0\.0"),
        (spoil(eps=float("inf")), f"{_NBP}: eps must be a finite number above 0, got inf"),
        (spoil(count_include_pad=None), f"{_NBP}: count_include_pad must be True or False, got None"),
        (spoil(backend="cudnn"), f"{_NBP}: backend must be one of reference, cpu, cuda, triton, got 'cudnn'"),
    ),
    bad_arguments=(
        bad(0, lambda x: x[0]),
        bad(0, lambda x: x[:1]),
        bad(0, lambda x: x[:, :2]),
        bad(1, lambda m: m[0]),
        bad(1, lambda m: m[..., :1]),
        bad(1, lambda m: m.expand(2, 3, 7, 5)),
        bad(1, lambda m: m.double()),
        bad(2, []),
        bad(2, [5, 4, 3]),
        bad(2, [5, 3, -1]),
        bad(3, 0.0),
    ),
    backward_options=lambda options: _non_background_arguments(None, None, **options)[2:],  # type: ignore[arg-type]
    values={"mask": _soft_mask},
)

SPECS: dict[str, OpSpec] = {
    spec.name: spec for spec in (INDEXED_POOL, INDEXED_UPSAMPLE, INDEXED_POOL_SKIP, NON_BACKGROUND_POOL)
}
