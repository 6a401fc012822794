# SPDX-License-Identifier: Apache-2.0
"""The OpSpecs of affinity_map and affinity_moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import ops
from ..reference.affinity_map import affinity_map_reference
from ..reference.affinity_moments import affinity_moments_reference
from .specs import OpSpec, Sample, bad, spoil

Shape = tuple[int, int, int, int]


def encoding_sample(
    x: Shape, kernels: tuple[bool, bool], rank: int, k: int, stride: int, affine: bool | None, **options: Any
) -> Sample:
    """``kernels``: dynamic, channel-wise; ``affine``: None where the operator has none."""
    dynamic, channel_wise = kernels
    n, c, height, width = x
    kernel = (n if dynamic else 1, c if channel_wise else 1, rank, k, k)
    kind = f"{'dynamic' if dynamic else 'static'}-{'channel_wise' if channel_wise else 'shared'}"
    more = "".join(f"-{name[0]}{value}" for name, value in options.items() if name == "groups") + "-affine" * bool(affine)
    shapes: tuple[tuple[int, ...], ...] = (x, kernel, kernel, (n, c, rank, 2, 2))
    return Sample(
        f"{n}x{c}x{height}x{width}-d{rank}-k{k}-s{stride}-{kind}{more}",
        shapes if affine else shapes[:3],
        {"stride": stride, **options},
        {"u": 1 / k, "v": 1 / k},  # encodings of the size of x
    )


def _terms(sample: Sample) -> dict[str, int]:
    (n, c, height, width), (_, _, rank, k, _) = sample.shapes[:2]
    stride = sample.options["stride"]
    positions = -(-height // stride) * -(-width // stride)
    everywhere = n * c * positions + k * k
    return {"a": c * k * k, "moments": everywhere, "x": everywhere + 2 * rank * k * k, "u": everywhere, "v": everywhere,
            "affine": positions + k * k}  # fmt: skip


def _errors(op: str) -> tuple[tuple[Callable[[dict[str, Any]], Any], str], ...]:
    """On x of 2 x 3 x 7 x 5 and kernels of 1 x 1 x 2 x 5 x 5."""
    return (
        (spoil(x="photo"), f"{op}: x must be a tensor, got str"),
        (spoil(u=None), f"{op}: u must be a tensor, got NoneType"),
        (spoil(v=None), f"{op}: v must be a tensor, got NoneType"),
        (spoil(x=lambda t: t[0]), rf"{op}: x must be \(N, C, H, W\), got 3 dimensions"),
        (spoil(u=lambda t: t[0]), rf"{op}: u must be \(Nu, Cu, d, k, k\), got 4 dimensions"),
        (spoil(v=lambda t: t[0]), rf"{op}: v must be \(Nu, Cu, d, k, k\), got 4 dimensions"),
        (spoil(x=Tensor.int), f"{op}: x must be float64, float32, float16 or bfloat16, got torch.int32"),
        (spoil(u=Tensor.double), f"{op}: u must have the dtype of x, torch.float32, got torch.float64"),
        (spoil(v=lambda t: t.to("meta")), f"{op}: v must be on the device of x, cpu, got meta"),
        (spoil(u=lambda t: t.expand(3, 1, 2, 5, 5)), f"{op}: u must be for 2 samples or for 1, got 3"),
        (spoil(u=lambda t: t.expand(1, 2, 2, 5, 5)), f"{op}: u must be for 3 channels or for 1, got 2"),
        (spoil(u=lambda t: t[:, :, :0]), rf"{op}: u must have a rank within 1\.\.16, got 0"),
        (spoil(u=lambda t: t[..., 1:]), rf"{op}: u must have square kernels of size 1\.\.14, got 5 x 4"),
        (spoil(u=lambda t: t[..., :1, :1].expand(1, 1, 2, 15, 15)), f"{op}: u must have square kernels .* got 15 x 15"),
        (spoil(v=lambda t: t[:, :, :1]), rf"{op}: v must be \(1, 1, 2, 5, 5\), as u, got \(1, 1, 1, 5, 5\)"),
        (spoil(x=lambda t: t[:, :0]), f"{op}: x must have C, H and W of at least 1, got .2, 0,"),
        (spoil(stride=5), f"{op}: stride must be one of 1, 2, 3, 4, got 5"),
        (spoil(stride=True), f"{op}: stride must be one of 1, 2, 3, 4, got True"),
        (spoil(backend="cudnn"), f"{op}: backend must be one of reference, cpu, cuda, triton, got 'cudnn'"),
    )


def _bad(stride: int) -> tuple[Callable[[list[Any]], None], ...]:
    """``stride``: its position among the dispatcher's arguments."""
    return (
        bad(0, lambda x: x[0]),
        bad(0, lambda x: x[:, :0]),
        bad(1, lambda u: u[0]),
        bad(1, lambda u: u[..., 1:]),
        bad(1, lambda u: u[:, :, :0]),
        bad(1, lambda u: u.expand(3, 1, 2, 5, 5)),
        bad(1, lambda u: u.expand(1, 2, 2, 5, 5)),
        bad(1, lambda u: u.double()),
        bad(2, lambda v: v[:, :, :1]),
        bad(2, lambda v: v.double()),
        bad(stride, 0),
        bad(stride, 5),
    )


# --- affinity_map -----------------------------------------------------------------------------------------------------

_MAP = "affinity_map"
_STATIC, _DYNAMIC = (False, False), (True, False)
# (N, C, H, W), kernels, rank, kernel size, stride, affine: the smallest, odd sizes, gaps between windows, around SIMD vectors
# and thread blocks along w, h and c, empty.
_MAP_CASES: tuple[tuple[Shape, tuple[bool, bool], int, int, int, bool], ...] = (
    ((2, 3, 8, 6), (True, True), 1, 4, 2, True),
    ((1, 1, 1, 1), _STATIC, 1, 3, 2, False),
    ((2, 3, 7, 5), _STATIC, 2, 5, 2, True),
    ((2, 3, 7, 5), _DYNAMIC, 1, 6, 2, False),
    ((2, 5, 10, 9), (False, True), 3, 3, 3, True),
    ((1, 4, 9, 70), _STATIC, 1, 5, 2, False),
    ((1, 19, 5, 6), (True, True), 1, 6, 2, True),
    ((1, 1, 4, 33), _STATIC, 1, 14, 1, False),
    ((1, 3, 5, 67), (False, True), 16, 2, 4, True),
    ((0, 4, 4, 4), _STATIC, 1, 5, 2, False),
)


def _map_arguments(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    affine: Tensor | None = None,
    *,
    stride: int,
    scale: float = 0.5,
    negative_slope: float = 0.1,
) -> tuple[Any, ...]:
    return x, u, v, affine, stride, scale, negative_slope


def _affinity_map(x: Tensor, u: Tensor, v: Tensor, affine: Tensor | None = None, **options: Any) -> Tensor:
    return ops.affinity_map(x, u, v, affine=affine, **options)


AFFINITY_MAP = OpSpec(
    name=_MAP,
    function=_affinity_map,
    tensors=("x", "u", "v", "affine"),
    arguments=_map_arguments,
    reference=affinity_map_reference,
    outputs=("a",),
    terms=_terms,
    samples=tuple(encoding_sample(*case, scale=0.5, negative_slope=0.1) for case in _MAP_CASES),
    errors=(
        *_errors(_MAP),
        (spoil(affine="fold"), f"{_MAP}: affine must be a tensor, got str"),
        (spoil(affine=lambda t: t[0]), rf"{_MAP}: affine must be \(N, C, d, 2, 2\), got 4 dimensions"),
        (spoil(affine=lambda t: t[:1]), rf"{_MAP}: affine must be \(2, 3, 2, 2, 2\), got \(1, 3, 2, 2, 2\)"),
        (spoil(affine=Tensor.double), f"{_MAP}: affine must have the dtype of x, torch.float32, got torch.float64"),
        (spoil(scale=float("nan")), f"{_MAP}: scale must be a finite number, got nan"),
        (spoil(scale="1"), f"{_MAP}: scale must be a finite number, got '1'"),
        (spoil(negative_slope=None), f"{_MAP}: negative_slope must be a finite number, got None"),
    ),
    bad_arguments=(
        *_bad(4),
        bad(3, lambda a: a[0]),
        bad(3, lambda a: a[:1]),
        bad(3, lambda a: a[:, :2]),
        bad(3, lambda a: a.double()),
    ),
    backward_options=lambda options: (options["stride"], options["scale"], options["negative_slope"]),
)

# --- affinity_moments -------------------------------------------------------------------------------------------------

_MOMENTS = "affinity_moments"
_MOMENTS_CASES: tuple[tuple[Shape, tuple[bool, bool], int, int, int, int], ...] = (
    ((2, 3, 8, 6), (True, True), 1, 4, 2, 3),
    ((1, 1, 1, 1), _STATIC, 1, 3, 2, 1),
    ((2, 3, 7, 5), _STATIC, 2, 5, 2, 1),
    ((2, 5, 10, 9), (False, True), 3, 3, 3, 5),
    ((1, 20, 5, 6), (True, True), 1, 6, 2, 4),
    ((1, 2, 9, 70), _STATIC, 1, 5, 2, 2),
    ((0, 4, 4, 4), _STATIC, 1, 5, 2, 2),
)


def _moments_arguments(x: Tensor, u: Tensor, v: Tensor, *, stride: int, groups: int) -> tuple[Any, ...]:
    return x, u, v, groups, stride


AFFINITY_MOMENTS = OpSpec(
    name=_MOMENTS,
    function=ops.affinity_moments,
    tensors=("x", "u", "v"),
    arguments=_moments_arguments,
    reference=affinity_moments_reference,
    outputs=("moments",),
    terms=_terms,
    samples=tuple(
        encoding_sample(x, kernels, rank, k, stride, None, groups=groups)
        for x, kernels, rank, k, stride, groups in _MOMENTS_CASES
    ),
    errors=(
        *_errors(_MOMENTS),
        (spoil(groups=2), f"{_MOMENTS}: groups must divide the 3 channels of x, got 2"),
        (spoil(groups=0), f"{_MOMENTS}: groups must divide the 3 channels of x, got 0"),
    ),
    bad_arguments=(*_bad(4), bad(3, 0), bad(3, 2)),
    backward_options=lambda options: (options["groups"], options["stride"]),
)

ENCODING_SPECS: dict[str, OpSpec] = {spec.name: spec for spec in (AFFINITY_MAP, AFFINITY_MOMENTS)}
