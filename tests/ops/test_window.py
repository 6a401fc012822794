# SPDX-License-Identifier: Apache-2.0
"""Dynamic-kernel operators against arrays of the published implementations, and against other definitions of the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyindexnet
from pyindexnet import backends
from pyindexnet.ops._common import SUFFIX, TRITON_INTERPRETED
from pyindexnet.testing import SPECS, Sample, measure, tolerance
from pyindexnet.testing.parity import error
from tests.golden import GoldenCase, load_case

from .variants import FLOATS, dtype_id, variants

PUBLISHED = [
    *(("a2u_ops", f"up_k{k}_g{g}_s2", k, g) for k in (1, 3, 5) for g in (1, 2)),
    *(("a2u_ops", f"down_k6_g{g}_s2", 6, g) for g in (1, 2)),
    *(("carafe", f"carafe_k{k}_g{g}_s2", k, g) for k in (1, 3, 5) for g in (1, 2)),
]


def agree(
    call: Callable[..., Tensor], case: GoldenCase, inputs: tuple[str, ...], wanted: tuple[str, ...], terms: int, device: str
) -> None:
    """Output and gradients of ``call(backend, *tensors)`` equal the arrays, whose noise the float64 reference tells."""
    cotangent = case.tensor(next(n for n in case.arrays if n.startswith("cotangent")))

    def run(backend: str, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        leaves = [case.tensor(n).to(device, dtype).requires_grad_() for n in inputs]
        y = call(backend, *leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y))

    gold, found = run("reference", torch.float64, "cpu"), run(call.backend, torch.float32, device)  # type: ignore[attr-defined]
    for name, exact, value in zip(wanted, gold, found, strict=True):
        published = case.tensor(name)
        noise = error(published, exact)
        assert noise <= tolerance(exact, 0.0, terms, torch.float32), name
        assert error(value, published.double()) <= tolerance(exact, noise, terms, torch.float32), name


def on(backend: str, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    call.backend = backend  # type: ignore[attr-defined]
    return call


@pytest.mark.interpreted(one_in=4)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize(("folder", "name", "k", "groups"), PUBLISHED, ids=lambda v: str(v))
def test_published_operators(folder: str, name: str, k: int, groups: int, variant: tuple[str, str]) -> None:
    backend, device = variant
    case = load_case(folder, name)

    def call(backend: str, x: Tensor, masks: Tensor) -> Tensor:
        if name.startswith("down"):
            return pyindexnet.dynamic_downsample(x, masks, kernel_size=k, groups=groups, normalization="none", backend=backend)
        return pyindexnet.carafe(x, masks, k, groups, 2, backend=backend)

    channels = case.arrays["input_features"].shape[1]
    terms = 4 * k * k + channels
    agree(
        on(backend, call),
        case,
        ("input_features", "input_masks"),
        ("output", "grad_features", "grad_masks"),
        terms,
        device,
    )


@pytest.mark.parametrize("variant", variants())
def test_published_spatial_fusion(variant: tuple[str, str]) -> None:
    """The released code groups channels in blocks; Eq. 6 of the paper interleaves them: the same on permuted channels."""
    backend, device = variant
    case = load_case("tmf_module", "spdynamic_k3_g2")

    def call(backend: str, x: Tensor, kernels: Tensor) -> Tensor:
        return pyindexnet.grouped_spatial_fusion(x, kernels.flatten(1, 3), groups=2, backend=backend)

    agree(on(backend, call), case, ("input_x", "input_weight"), ("output", "grad_x", "grad_weight"), 25, device)
    x, kernels = case.tensor("input_x").to(device), case.tensor("input_weight").flatten(1, 3).to(device)
    interleaved = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    y = pyindexnet.grouped_spatial_fusion(interleaved, kernels, groups=2, group_order="interleaved", backend=backend)
    blocked = y.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2).cpu()
    assert error(blocked, case.tensor("output").double()) <= tolerance(blocked.double(), 0.0, 9, torch.float32)


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("which", ["down", "up"])
@pytest.mark.parametrize("name", ["share_s3_k6_g2", "share_s3_k6_g1", "share_s1_k6_g1"])
def test_released_group_layout(name: str, which: str, variant: tuple[str, str]) -> None:
    """The released module normalises over (tap, group) and applies (group, tap). Its kernels are normalised: the logarithm is
    a set of logits of theirs."""
    backend, device = variant
    case = load_case("a2u_module", f"interchannelupdown_{name}")
    groups = case.info["constructor"]["downupsample_group"]
    if which == "down":
        x, masks, wanted, k = case.tensor("input_x"), case.tensor("output_out_d"), case.tensor("output_downsampled"), 2
    else:
        x, masks, wanted, k = case.tensor("input_z"), case.tensor("output_out_u"), case.tensor("output_upsampled"), 1
    k *= case.info["constructor"]["up_kernel_size"]
    logits, how = (masks.log(), "softmax") if k > 1 else (masks.logit(), "sigmoid")
    options = {"kernel_size": k, "groups": groups, "normalization": how, "group_layout": "position_major"}

    def call(backend: str, x: Tensor, logits: Tensor) -> Tensor:
        if which == "down":
            return pyindexnet.dynamic_downsample(x, logits, backend=backend, **options)
        shuffled = F.pixel_unshuffle(logits, 2).contiguous(memory_format=torch.channels_last)
        return pyindexnet.dynamic_upsample(x, shuffled, backend=backend, **options)

    gold = call("reference", x.double(), logits.double())
    bound = tolerance(gold, error(wanted, gold), 2 * k * k, torch.float32)
    assert error(wanted, gold) <= tolerance(gold, 0.0, 2 * k * k, torch.float32)
    assert error(call(backend, x.to(device), logits.to(device)), wanted.double()) <= bound


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_spatial_fusion_is_involution(k: int, variant: tuple[str, str]) -> None:
    """Involution by its definition, pixel by pixel: y[i, j, c] = sum over the window of H[i, j, u, v, c // (C / G)] x."""
    backend, device = variant
    rng = torch.Generator().manual_seed(k)
    n, groups, per_group, height, width = 2, 2, 3, 5, 6
    x = torch.randn(n, groups * per_group, height, width, generator=rng, dtype=torch.float64)
    kernels = torch.randn(n, groups, k, k, height, width, generator=rng, dtype=torch.float64)
    wanted = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for u in range(k):
                for v in range(k):
                    row, column = i + u - k // 2, j + v - k // 2
                    if 0 <= row < height and 0 <= column < width:
                        weight = kernels[:, :, u, v, i, j].repeat_interleave(per_group, 1)
                        wanted[:, :, i, j] += weight * x[:, :, row, column]
    y = pyindexnet.grouped_spatial_fusion(
        x.float().to(device), kernels.float().flatten(1, 3).to(device), groups=groups, kernel_size=k, backend=backend
    )
    reference = pyindexnet.grouped_spatial_fusion(
        x.float(), kernels.float().flatten(1, 3), groups=groups, kernel_size=k, backend="reference"
    )
    assert error(y, wanted) <= tolerance(wanted, error(reference, wanted), k * k, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
@pytest.mark.parametrize("variant", variants())
def test_absent_output_pixels_do_not_leak(variant: tuple[str, str], dtype: torch.dtype) -> None:
    """NaN logits of output pixels that ``output_size`` cuts off change nothing, and their gradient is 0."""
    backend, device = variant
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=rng).to(device, dtype)
    logits = torch.randn(2, 9, 4, 4, 5, generator=rng).to(device, dtype)
    absent = torch.zeros(4, 4, 5, dtype=torch.bool, device=device)
    absent[2:, 3, :] = True
    absent[1::2, :, 4] = True
    results = []
    for value in (0.0, torch.nan):
        leaves = [x.clone().requires_grad_(), logits.masked_fill(absent, value).flatten(1, 2).requires_grad_()]
        y = pyindexnet.dynamic_upsample(*leaves, kernel_size=3, output_size=(7, 9), backend=backend)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    grad = results[1][2].unflatten(1, (9, 4))
    assert not grad.masked_select(absent.expand_as(grad)).any()


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda x, m: pyindexnet.carafe("x", m, 3), "carafe: features must be a tensor, got str"),
        (lambda x, m: pyindexnet.carafe(x, None, 3), "carafe: masks must be a tensor, got NoneType"),
        (lambda x, m: pyindexnet.carafe(x, m[..., 1:], 3), r"carafe: masks must be \(2, 9, 8, 10\), got \(2, 9, 8, 9\)"),
        (
            lambda x, m: pyindexnet.carafe(x, m.double(), 3),
            "carafe: masks must have the dtype of features, torch.float32, got torch.f",
        ),
        (lambda x, m: pyindexnet.carafe(x, m, 3, 4), "carafe: group_size must divide the 6 channels of features, got 4"),
        (lambda x, m: pyindexnet.carafe(x, m, 3, 1, 5), "carafe: scale_factor must be one of 1, 2, 3, 4, got 5"),
        (lambda x, m: pyindexnet.carafe(x, m, 3.0), "carafe: kernel_size must be one of 1, 3, 5, 7, got 3.0"),
    ],
)
def test_carafe_names_its_own_arguments(call: Callable[..., Tensor], pattern: str) -> None:
    with pytest.raises((TypeError, ValueError), match=pattern):
        call(torch.zeros(2, 6, 4, 5), torch.zeros(2, 9, 8, 10))


@pytest.mark.parametrize("size", [8, (8.0, 10.0), "ab", (None, 10)])
def test_output_size_is_two_integers(size: object) -> None:
    x, logits = torch.zeros(2, 6, 4, 5), torch.zeros(2, 36, 4, 5)
    with pytest.raises(ValueError, match=r"dynamic_upsample: output_size must be \(H, W\), got "):
        pyindexnet.dynamic_upsample(x, logits, kernel_size=3, output_size=size)  # type: ignore[arg-type]


# x, (kernels' channels, height, width), options: several tiles, strips and bands of the CPU kernels; the last two write so much
# that the stores go past the caches.
LARGE = {
    "fusion-k7": ("grouped_spatial_fusion", (1, 6, 50, 301), (98, 50, 301), {"groups": 2, "kernel_size": 7}),
    "up-k5": ("dynamic_upsample", (1, 11, 40, 150), (100, 40, 151), {"kernel_size": 5, "output_size": (79, 301)}),
    "down-k6": ("dynamic_downsample", (1, 11, 101, 310), (36, 50, 155), {"kernel_size": 6}),
    "down-k14": ("dynamic_downsample", (1, 3, 90, 130), (196, 90, 130), {"kernel_size": 14, "scale": 1}),
    "fusion-stream": ("grouped_spatial_fusion", (1, 64, 256, 256), (18, 256, 256), {"groups": 2, "kernel_size": 3}),
    "up-stream": ("dynamic_upsample", (1, 64, 128, 128), (36, 128, 128), {"kernel_size": 3}),
}


@pytest.mark.skipif(TRITON_INTERPRETED, reason="too large for Triton's interpreter")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", LARGE)
def test_large(case: str, threads: int) -> None:
    name, x, kernels, options = LARGE[case]
    spec = SPECS[name]
    given = dict(options)
    if name != "grouped_spatial_fusion":
        given = {"groups": 1, "scale": 2, "normalization": "softmax"} | given
    given |= {"group_order": "blocked"} if name == "grouped_spatial_fusion" else {}
    given |= {"layout": "shuffled"} if name == "dynamic_upsample" else {}
    sample = Sample(case, (x, (x[0], *kernels)), given)
    suffix = SUFFIX[backends.choose(name, torch.empty(0))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = measure(spec, sample, suffix, torch.float32)
    finally:
        torch.set_num_threads(before)
    for row in rows:
        assert row.ok, str(row)


def test_released_group_layout_of_an_empty_batch() -> None:
    options = {"groups": 2, "group_layout": "position_major"}
    up = pyindexnet.dynamic_upsample(torch.zeros(0, 4, 3, 3), torch.zeros(0, 72, 3, 3), kernel_size=3, **options)
    assert up.shape == (0, 4, 6, 6)
    down = pyindexnet.dynamic_downsample(torch.zeros(0, 4, 4, 4), torch.zeros(0, 18, 2, 2), kernel_size=3, **options)
    assert down.shape == (0, 4, 2, 2)
