# SPDX-License-Identifier: Apache-2.0
"""Affinity-aware resampling against the published modules, by its definition, and against [Thesis] table 4.8."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.models.a2u_matting import affinity_key_map
from pyindexnet.nn import AffinityUpDown, AffinityUpsample
from pyindexnet.nn.affinity import VARIANTS, AffinityKernels
from pyindexnet.testing import tolerance
from pyindexnet.testing.parity import error
from tests.golden import load_case
from tests.nn.golden_module import check, load_published, parameter_gradients

GOLDENS = tuple(
    f"interchannelupdown_{name}" for name in ("share_s1_k6_g1", "share_s3_k6_g1", "share_s3_k6_g2", "unshare_s3_k6_g1")
)


def normalised(module: AffinityUpDown, kernels: AffinityKernels) -> tuple[Tensor, Tensor]:
    """The kernels for down- and upsampling, as the published module returns them: position-major where groups are several."""
    a, up, down = kernels
    assert down is not None
    logits_down, logits_up = (torch.einsum("nrc,nrij->ncij", p.expand(len(a), -1, -1), a) for p in (down, up))
    maps_up = F.pixel_shuffle(logits_up, 2).sigmoid()
    if module.kernel_size > 1:
        maps_up = maps_up.unflatten(1, (module.kernel_size**2, module.groups)).softmax(1).flatten(1, 2)
    return logits_down.unflatten(1, (module.down_kernel_size**2, module.groups)).softmax(1).flatten(1, 2), maps_up


def kernel_maps(module: AffinityUpDown, guide: Tensor) -> tuple[Tensor, Tensor]:
    return normalised(module, module.kernels(guide))


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    case = load_case("a2u_module", name)
    options = case.info["constructor"]
    keys = affinity_key_map("m", "p")

    def results(dtype: torch.dtype, fused: bool) -> dict[str, Tensor]:
        module = AffinityUpDown(
            options["c"],
            shared=options["share"],
            normalize=True,
            kernel_size=options["up_kernel_size"],
            encoder_kernel_size=options["encode_kernel_size"],
            groups=options["downupsample_group"],
            group_layout="position_major",
        )
        load_published(module, keys, case).to(dtype)
        x, z = (case.tensor(f"input_{key}").to(dtype).requires_grad_() for key in ("x", "z"))
        kernels = module.kernels(x) if fused else AffinityKernels(*by_samples(module, x))
        down, up = normalised(module, kernels)
        size = x.shape[2], x.shape[3]
        outputs = {
            "out_d": down,
            "out_u": up,
            "downsampled": module.downsampled(x, kernels),
            "upsampled": module.upsampled(z, kernels, size),
        }
        cotangents = [case.tensor(f"cotangent_{key}").to(dtype) for key in outputs]
        grads = torch.autograd.grad(list(outputs.values()), [x, z, *module.parameters()], cotangents)
        found = {f"output_{key}": t for key, t in outputs.items()} | {"grad_x": grads[0], "grad_z": grads[1]}
        return found | parameter_gradients(module, keys, grads[2:])

    # In float32 by plain layers, as the arrays were made: what their rounding does to sums that nearly vanish.
    check(case, lambda dtype: results(dtype, fused=dtype == torch.float64))

    exact, judge, found = (results(*how) for how in ((torch.double, True), (torch.float, False), (torch.float, True)))
    z = case.tensor("input_z")
    for key, gold in ((key, t.detach()) for key, t in exact.items()):
        # Gradients of weights are sums over all of a batch, the other sums have no more terms than a channel has cells.
        terms = z.numel() if "weight" in key else z[0, 0].numel()
        bound = tolerance(gold, error(judge[key], gold), terms, torch.float32)
        assert error(found[key], gold) <= bound, key
        assert error(case.tensor(key), gold) <= bound, key


def module_of(kind: type[AffinityUpsample], **options: Any) -> AffinityUpsample:
    torch.manual_seed(3)
    module = kind(6, encoder_kernel_size=4, norm_groups=3, **options).double()
    for parameter in module.parameters():  # all of them, biases and norms too, matter
        nn.init.normal_(parameter)
    return module


def by_samples(module: AffinityUpsample, guide: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """a, and the generators with all channels, as [A2U] Eq. 4 writes them: one sample after the other, with plain layers."""
    size, d, c = module.encoder_kernel_size, module.encodings, module.channels
    maps, generators = [], []
    for x in guide.split(1):
        if module.encode is not None:
            encoders = module.encode(F.adaptive_avg_pool2d(x, size))[0]
        else:
            encoders = module.encoders
        padded = F.pad(x, [(size - 1) // 2, size] * 2)
        sides = []
        for e, kernel in enumerate(encoders.view(2, -1, d, size, size)):
            kernel = kernel.expand(c, d, size, size)  # channel-shared, or one for each
            y = F.conv2d(padded, kernel.reshape(c * d, 1, size, size), stride=2, groups=c)
            y = y[:, :, : -(-x.shape[2] // 2), : -(-x.shape[3] // 2)].unflatten(1, (c, d))
            if module.norm_weight is not None:
                weight, bias = (t.view(2, c, d)[e] for t in (module.norm_weight, module.norm_bias))
                y = [F.group_norm(y[:, :, r], module.norm_groups, weight[:, r], bias[:, r]) for r in range(d)]
                y = F.leaky_relu(torch.stack(y, 2), 0.01)
            sides.append(y)
        maps.append((sides[0] * sides[1]).sum(1) / c**0.5)
        p = module.generator if module.generate is None else module.generate(F.adaptive_avg_pool2d(x, 1)).flatten()
        generators.append(p)
    up, *down = torch.stack(generators).split(module.generators, 1)
    return torch.cat(maps), up.unflatten(1, (module.rank, -1)), down[0].unflatten(1, (d, -1)) if down else None


OPTIONS = [
    *({"variant": v, "shared": s, "position_wise": p} for v in VARIANTS for s in (True, False) for p in (True, False)),
    {"normalize": True},
    {"normalize": True, "shared": False, "position_wise": True, "variant": "hybrid"},
    {"rank": 3, "normalize": True},
    {"rank": 2, "position_wise": True, "groups": 3},
    {"kernel_size": 5, "normalization": "softmax", "groups": 2},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("size", [(8, 6), (7, 9)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_definition(options: dict[str, Any], size: tuple[int, int]) -> None:
    """Of every variant: kernels written out, applied to unfolded windows."""
    module = module_of(AffinityUpDown, **options)
    guide = torch.randn(2, 6, *size, dtype=torch.double)
    a, up, down = by_samples(module, guide)
    k, groups, low = module.kernel_size, module.groups, a.shape[2:]
    if module.position_wise:
        a4 = a.unflatten(1, (module.rank, 4))
        logits = torch.einsum("nrt,nrsij->ntsij", up, a4).flatten(1, 2)
    else:
        logits = torch.einsum("nrc,nrij->ncij", up, a)
    kernels = F.pixel_shuffle(logits, 2)[:, :, : size[0], : size[1]].unflatten(1, (groups, k * k))
    if module.normalization != "softmax":
        kernels = kernels.sigmoid()
    if k > 1:
        kernels = kernels.softmax(2)
    x = torch.randn(2, 6, *low, dtype=torch.double)
    windows = F.unfold(x, k, padding=k // 2).view(2, groups, 6 // groups, k * k, *low)
    windows = windows.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : size[0], : size[1]]
    want = (windows * kernels.unsqueeze(2)).sum(3).flatten(1, 2)
    pooled, skip, held = module.reduce(guide, keep=True)
    assert skip is guide
    torch.testing.assert_close(module.restore(x, held), want)
    torch.testing.assert_close(module(x, guide), want)

    kernels = torch.einsum("nrc,nrij->ncij", down, a).unflatten(1, (groups, 4 * k * k)).softmax(2)
    first = (2 * k - 1) // 2
    windows = F.unfold(F.pad(guide, (first, 2 * k, first, 2 * k)), 2 * k, stride=2)
    across = (size[1] + first) // 2 + 1
    windows = windows.view(2, groups, 6 // groups, 4 * k * k, -1, across)[..., : low[0], : low[1]]
    torch.testing.assert_close(pooled, (windows * kernels.unsqueeze(2)).sum(3).flatten(1, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_last(variant: str) -> None:
    module = module_of(AffinityUpDown, variant=variant, normalize=True)
    x = torch.randn(2, 6, 7, 10, dtype=torch.double)
    seen = []
    for fmt in (torch.contiguous_format, torch.channels_last):
        given = x.to(memory_format=fmt).detach().requires_grad_()
        pooled, _, guide = module.reduce(given, keep=False)
        y = module.restore(pooled, guide)
        assert y.is_contiguous(memory_format=fmt)
        seen.append([pooled, y, *torch.autograd.grad(y.square().sum(), [given, *module.parameters()])])
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("shared", [True, False], ids=["cs", "cw"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_as_printed(variant: str, shared: bool) -> None:
    """[Thesis] table 4.8, which leaves out biases."""
    c, s, k = 64, 3, 5
    printed = {
        ("static", False): 4 * s * s + 2 * k * k * c,
        ("static", True): 4 * s * s + 2 * k * k,
        ("hybrid", False): 4 * s * s * c + 2 * k * k * c,
        ("hybrid", True): 4 * s * s * c + 2 * k * k,
        ("dynamic", False): 4 * s * s * c + 2 * c * c,
        ("dynamic", True): 4 * s * s * c + 2 * c,
    }
    module = AffinityUpsample(c, variant=variant, shared=shared, kernel_size=s, encoder_kernel_size=k)
    assert sum(p.numel() for name, p in module.named_parameters() if "bias" not in name) == printed[variant, shared]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fixed"}, "variant must be one of 'static', 'hybrid', 'dynamic', got 'fixed'"),
        ({"kernel_size": 4}, "kernel_size must be one of 1, 3, 5, 7, got 4"),
        ({"encoder_kernel_size": 15}, "encoder_kernel_size must be one of 1, .*, 14, got 15"),
        ({"normalization": "relu"}, "normalization must be one of 'none', .*, got 'relu'"),
        ({"group_layout": "mixed"}, "group_layout must be one of 'group_major', 'position_major', got 'mixed'"),
        ({"normalize": True}, r"channels must be a multiple of norm_groups \(32\), got 48"),
        ({"rank": 17}, "rank must be a whole number from 1 to 16, got 17"),
        ({"rank": 5, "position_wise": True}, "rank must be a whole number from 1 to 4, got 5"),
        ({"rank": 1.5}, "rank must be a whole number from 1 to 16, got 1.5"),
        ({"groups": 0}, "groups must be a whole number from 1, got 0"),
        ({"groups": True}, "groups must be a whole number from 1, got True"),
        ({"rank": True}, "rank must be a whole number from 1 to 16, got True"),
        ({"kernel_size": 3.0}, "kernel_size must be one of 1, 3, 5, 7, got 3.0"),
        ({"kernel_size": True}, "kernel_size must be one of 1, 3, 5, 7, got True"),
        ({"encoder_kernel_size": 5.0}, "encoder_kernel_size must be one of 1, .*, 14, got 5.0"),
        ({"shared": "x"}, "shared must be one of False, True, got 'x'"),
        ({"position_wise": 1}, "position_wise must be one of False, True, got 1"),
        ({"normalize": None}, "normalize must be one of False, True, got None"),
        ({"channels": 0}, "channels must be a whole number from 1, got 0"),
        ({"groups": 2.0}, "groups must be a whole number from 1, got 2.0"),
        ({"normalize": True, "norm_groups": 0}, "norm_groups must be a whole number from 1, got 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("module", [AffinityUpsample, AffinityUpDown])
def test_bad_arguments(module: type[AffinityUpsample], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{module.__name__}: {message}"):
        module(**{"channels": 48, **options})


def test_normalised_encodings_under_autocast() -> None:
    """Encodings of a map with a mean: their variance is beyond float16's range, the affinity is not."""
    torch.manual_seed(0)
    module = AffinityUpDown(32, normalize=True).eval()
    guide = torch.randn(1, 32, 16, 16) + 10
    with torch.no_grad():
        exact = module.double().kernels(guide.double()).a
        with torch.autocast("cpu", torch.float16):
            found = module.float().kernels(guide).a
    assert found.dtype == torch.float16
    assert (found - exact).abs().max() < 0.05 * exact.std()


@pytest.mark.parametrize("size", [(1, 5, 6, 6), (6, 6, 6)], ids=str)
def test_bad_guide(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"AffinityUpDown: guide must be \(N, 6, H, W\), got"):
        AffinityUpDown(6).kernels(torch.zeros(size))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guide": torch.zeros(2, 8, 8, 8, dtype=torch.double)}, "guide must have the dtype of the module, torch.float32, got"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.half)}, "x must have the dtype of the module, torch.float32, got"),
        ({"guide": torch.zeros(2, 8, 8, 8, dtype=torch.int)}, "guide must be float64, .*, got torch.int32"),
        ({"guide": torch.zeros(2, 8, 0, 8)}, r"guide must have C, H and W of at least 1, got \(2, 8, 0, 8\)"),
        ({"x": torch.zeros(2, 8, 4)}, r"x must be \(N, C, H, W\), got 3 dimensions"),
        ({"x": [1.0]}, "x must be a tensor, got list"),
        ({"guide": None}, "guide must be a tensor, got NoneType"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else v,
)
def test_bad_maps(wrong: dict[str, Any], message: str, variant: str) -> None:
    given = {"x": torch.zeros(2, 8, 4, 4), "guide": torch.zeros(2, 8, 8, 8)} | wrong
    with pytest.raises(TypeError if "tensor" in message else ValueError, match=f"AffinityUpsample: {message}"):
        AffinityUpsample(8, variant=variant)(**given)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_takes_what_it_casts(variant: str) -> None:
    module, x, guide = AffinityUpsample(8, variant=variant), torch.randn(2, 8, 4, 4), torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        seen = [module(x, guide), module(x.bfloat16(), guide), module(x, guide.bfloat16())]
        with pytest.raises(ValueError, match="AffinityUpsample: guide must have the dtype of the module"):
            module(x, guide.double())
    assert [y.dtype for y in seen] == [torch.bfloat16] * 3
    torch.testing.assert_close(seen[1], seen[0])
