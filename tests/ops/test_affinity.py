# SPDX-License-Identifier: Apache-2.0
"""Affinity-aware operators against arrays of the published module, and against dynamic-kernel operators fed the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyindexnet
from pyindexnet import backends
from pyindexnet.ops._common import SUFFIX, TRITON_INTERPRETED
from pyindexnet.reference.affinity import affinity_logits
from pyindexnet.testing import SPECS, Sample, make_tensors, measure, tolerance
from pyindexnet.testing.parity import error, run
from tests.golden import GoldenCase, load_case

from .variants import variants

SPECIFIED = [SPECS["affinity_upsample"], SPECS["affinity_downsample"]]


def published_module(case: GoldenCase, leaves: dict[str, Tensor], backend: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[A2U] section 3 with dynamic kernels: encodings, affinity, generators; (downsampled, upsampled, kernels of both)."""
    x, z = leaves["x"], leaves["z"]
    n, c, height, width = x.shape
    k, size = case.info["constructor"]["up_kernel_size"], case.info["constructor"]["encode_kernel_size"]

    def pooled(name: str, size: int) -> Tensor:
        return F.conv2d(F.adaptive_avg_pool2d(x, size), leaves[f"{name}.1.weight"], leaves[f"{name}.1.bias"])

    def encode(name: str, norm: str) -> Tensor:
        kernels = pooled(name, size).expand(n, c, size, size).reshape(n * c, 1, size, size)
        before = (size - 1) // 2
        padded = F.pad(x, (before, size - 2 - before, before, size - 2 - before))
        u = F.conv2d(padded.reshape(1, n * c, *padded.shape[2:]), kernels, stride=2, groups=n * c)
        u = F.group_norm(u.view(n, c, height // 2, width // 2), 32, leaves[f"{norm}.0.weight"], leaves[f"{norm}.0.bias"])
        return F.leaky_relu(u, 0.01)

    a = (encode("bconv_U", "bnu") * encode("bconv_V", "bnv")).sum(1, keepdim=True) / c**0.5
    down, up = (pooled(name, 1).flatten(1).unsqueeze(1) for name in ("bconv_DP", "bconv_UP"))
    how = "sigmoid_softmax" if k > 1 else "sigmoid"
    y = pyindexnet.affinity_downsample(x, a, down, kernel_size=2 * k, backend=backend)
    high = pyindexnet.affinity_upsample(z, a, up, kernel_size=k, normalization=how, backend=backend)
    of_up = F.pixel_shuffle(affinity_logits(a, up), 2).sigmoid()
    return y, high, affinity_logits(a, down).softmax(1), of_up.softmax(1) if k > 1 else of_up


@pytest.mark.interpreted(one_in=0)
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("name", ["share_s3_k6_g1", "unshare_s3_k6_g1", "share_s1_k6_g1"])
def test_published_module(name: str, variant: tuple[str, str]) -> None:
    backend, device = variant
    case = load_case("a2u_module", f"interchannelupdown_{name}")
    outputs = ("downsampled", "upsampled", "out_d", "out_u")
    inputs = {"x": case.tensor("input_x"), "z": case.tensor("input_z"), **case.tensors("weight")}

    def results(backend: str, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        leaves = {key: t.to(device, dtype).requires_grad_() for key, t in inputs.items()}
        found = published_module(case, leaves, backend)
        grads = torch.autograd.grad(found, list(leaves.values()), [case.tensor(f"cotangent_{o}").to(found[0]) for o in outputs])
        named = {f"grad_{'' if key in 'xz' else 'weight/'}{key}": g for key, g in zip(leaves, grads, strict=True)}
        return {f"output_{o}": y.detach() for o, y in zip(outputs, found, strict=True)} | named

    gold, judge = results("reference", torch.float64, "cpu"), results("reference", torch.float32, "cpu")
    found = results(backend, torch.float32, device)
    z = case.tensor("input_z")
    for key, exact in gold.items():
        # The gradients of weights are sums over all encodings, the other sums have no more terms than a channel has cells.
        terms = z.numel() if "weight" in key else z[0, 0].numel()
        bound = tolerance(exact, error(judge[key], exact), terms, torch.float32)
        assert error(found[key], exact) <= bound, key
        assert error(case.tensor(key), exact) <= bound, key


@pytest.mark.parametrize("name", ["up_k1_g1_s2", "up_k1_g2_s2"])
@pytest.mark.parametrize("variant", variants())
def test_published_operator(name: str, variant: tuple[str, str]) -> None:
    """Of a rank that is the number of channels, with the identity as generator, a is the map of logits."""
    backend, device = variant
    case = load_case("a2u_ops", name)
    masks = F.pixel_unshuffle(case.tensor("input_masks"), 2)
    channels = masks.shape[1]
    options = {"kernel_size": 1, "groups": channels // 4, "normalization": "none"}

    def results(backend: str, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        x, a = (t.to(device, dtype).requires_grad_() for t in (case.tensor("input_features"), masks))
        p = torch.eye(channels, dtype=dtype, device=device).unsqueeze(0)
        y = pyindexnet.affinity_upsample(x, a, p, backend=backend, **options)
        cotangent = case.tensor(next(n for n in case.arrays if n.startswith("cotangent"))).to(y)
        grad_x, grad_a = torch.autograd.grad(y, (x, a), cotangent)
        return y.detach(), grad_x, F.pixel_shuffle(grad_a, 2)

    terms = 4 + case.arrays["input_features"].shape[1]
    for key, exact, value in zip(
        ("output", "grad_features", "grad_masks"),
        results("reference", torch.float64, "cpu"),
        results(backend, torch.float32, device),
        strict=True,
    ):
        noise = error(case.tensor(key), exact)
        assert noise <= tolerance(exact, 0.0, terms, torch.float32), key
        assert error(value, case.tensor(key).double()) <= tolerance(exact, noise, terms, torch.float32), key


@pytest.mark.parametrize("spec", SPECIFIED, ids=lambda spec: spec.name)
def test_is_the_dynamic_operator_of_the_product(spec: Any) -> None:
    """Outputs and gradients in float64, the product by another formula."""
    dynamic: Callable[..., Tensor] = getattr(pyindexnet, spec.name.replace("affinity", "dynamic"))
    for sample in (s for s in spec.samples if s.shapes[0][0]):
        tensors = make_tensors(spec, sample, torch.float64)
        mine = run(lambda *t, s=sample: spec.function(*t, backend="reference", **s.options), tensors, None)

        def product(x: Tensor, a: Tensor, p: Tensor, s: Sample = sample) -> Tensor:
            logits = (p.unsqueeze(-1).unsqueeze(-1) * a.unsqueeze(2)).sum(1)
            return dynamic(x, logits, backend="reference", **s.options)

        for found, exact in zip(sum(mine, ()), sum(run(product, tensors, None), ()), strict=True):
            torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("spec", SPECIFIED, ids=lambda spec: spec.name)
def test_shared_generator(spec: Any, variant: tuple[str, str]) -> None:
    """One generator for all samples is that generator for each of them, and its gradient their sum."""
    backend, device = variant
    sample = next(s for s in spec.samples if s.shapes[0][0] > 1 and s.shapes[2][0] == 1)
    x, a, p = make_tensors(spec, sample, torch.float32, device)

    def call(*t: Tensor) -> Tensor:
        return spec.function(*t, backend=backend, **sample.options)

    (y,), (grad_x, grad_a, grad_p) = run(call, (x, a, p), None)
    own = p.repeat(x.shape[0], 1, 1)
    (same,), (same_x, same_a, grads) = run(call, (x, a, own), None)
    for one, other in ((y, same), (grad_x, same_x), (grad_a, same_a)):
        assert torch.equal(one, other)
    wanted = grads.double().sum(0, keepdim=True).cpu()
    terms = x.shape[0] * a[0, 0].numel()
    assert error(grad_p, wanted) <= tolerance(grads.double().abs().sum(0, keepdim=True).cpu(), 0.0, terms, torch.float32)


# x, (cells), rank, samples of the generator, options: several tiles, strips and bands of the CPU kernels, groups in turn.
LARGE = {
    "up-k5": ("affinity_upsample", (1, 11, 40, 150), (40, 151), 1, {"kernel_size": 5, "output_size": (79, 301)}),
    "up-groups": ("affinity_upsample", (2, 6, 37, 130), (37, 130), 2, {"kernel_size": 3, "groups": 3}),
    "down-k6": ("affinity_downsample", (1, 11, 101, 310), (50, 155), 1, {"kernel_size": 6}),
    "down-groups": ("affinity_downsample", (1, 4, 60, 330), (30, 165), 3, {"kernel_size": 6, "groups": 2}),
}


@pytest.mark.skipif(TRITON_INTERPRETED, reason="too large for Triton's interpreter")
@pytest.mark.parametrize("case", LARGE)
def test_large(case: str) -> None:
    """Under the tolerance rule, and the same to the bit with any number of threads."""
    name, x, cells, rank, options = LARGE[case]
    spec, scale = SPECS[name], 2 if name == "affinity_upsample" else 1
    given = {"groups": 1, "scale": 2, "normalization": "sigmoid_softmax"} | options
    channels = given["groups"] * given["kernel_size"] ** 2 * scale**2
    sample = Sample(case, (x, (x[0], rank, *cells), (1, rank, channels)), given)
    for row in measure(spec, sample, SUFFIX[backends.choose(name, torch.empty(0))], torch.float32):
        assert row.ok, str(row)
    tensors, before, results = make_tensors(spec, sample, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(sum(run(lambda *t: spec.function(*t, **given), tensors, None), ()))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
