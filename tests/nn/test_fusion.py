# SPDX-License-Identifier: Apache-2.0
"""GLF against the published one; the fusions that it is compared with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyindexnet.models.tmfnet import glf_key_map
from pyindexnet.nn import GLF, StaticFusion
from pyindexnet.nn.fusion import CarafeFusion
from tests.golden import load_case
from tests.nn.golden_module import check, load_published, parameter_gradients


@pytest.mark.parametrize("group_order", ["blocked", "interleaved"])
@pytest.mark.parametrize("name", ["glf_k3_inter32_red4", "glf_k3_inter48_red4"])
def test_golden(name: str, group_order: str) -> None:
    """In either order: published weights are permuted into Eq. 6's."""
    case = load_case("tmf_module", name)
    options = case.info["constructor"]
    high, low = case.arrays["input_high"].shape[1], case.arrays["input_low"].shape[1]
    sizes = (high, low, options["inter_channels"], options["out_channels"])

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        module = GLF(*sizes, reduction=options["reduction_ratio"], group_order=group_order)
        keys = glf_key_map("m", "p", module)
        load_published(module, keys, case).to(dtype)
        given = {key: case.tensor(f"input_{key}").to(dtype).requires_grad_() for key in ("high", "low", "emb")}
        x = module.distributed(given["high"], given["low"])
        kernels = module.kernels(x, given["emb"])
        fused = module.fused(x, kernels)
        if group_order == "interleaved":  # back into the order of the arrays
            x, fused = (t.unflatten(1, (-1, module.groups)).transpose(1, 2).flatten(1, 2) for t in (x, fused))
        y = module(given["high"], given["low"], given["emb"])
        cotangent = case.tensor("cotangent_output").to(dtype)
        grads = torch.autograd.grad(y, [*given.values(), *module.parameters()], cotangent)
        inputs = {f"grad_{key}": g for key, g in zip(given, grads, strict=False)}
        outputs = {"output": y, "output_reduced": x, "output_kernel": kernels, "output_dynamic": fused}
        return outputs | inputs | parameter_gradients(module, keys, grads[len(given) :])

    check(case, results)


SIZES = {"high_channels": 8, "low_channels": 5, "inter_channels": 12, "out_channels": 6, "group_channels": 4, "reduction": 3}


def maps(height: int = 7, width: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """High-level map, low-level map of an odd size, and a map whose mean is the global feature."""
    torch.manual_seed(0)
    half = -(-height // 2), -(-width // 2)
    return torch.randn(2, 8, *half), torch.randn(2, 5, height, width), torch.randn(2, 7, 3, 3)


def by_loops(module: GLF, high: Tensor, low: Tensor, mean: Tensor | None) -> Tensor:
    """Eqs. 4 to 7, channel by channel and tap by tap."""
    n, _, height, width = low.shape
    shuffled = torch.zeros(n, 2, height, width)
    for i in range(height):
        for j in range(width):
            for c in range(2):
                shuffled[:, c, i, j] = high[:, 4 * c + 2 * (i % 2) + j % 2, i // 2, j // 2]
    x = module.distribute(torch.cat([shuffled, low], 1))
    hidden = module.local_embedding(x)
    if mean is not None:
        hidden = hidden + module.global_embedding(mean)
    k = module.predict(F.leaky_relu(hidden, 0.01)).view(n, module.groups, 3, 3, height, width)
    padded = F.pad(x, (1, 1, 1, 1))
    fused = torch.zeros_like(x)
    for c in range(x.shape[1]):
        g = c % module.groups if module.group_order == "interleaved" else c // 4
        for u in range(3):
            for v in range(3):
                fused[:, c] += k[:, g, u, v] * padded[:, c, u : u + height, v : v + width]
    return module.merge(fused)


@pytest.mark.parametrize("group_order", ["blocked", "interleaved"])
@pytest.mark.parametrize("source", ["tmp", "high", "c5", "none"])
def test_definition(source: str, group_order: str) -> None:
    high, low, context = maps()
    module = GLF(**SIZES, global_source=source, global_channels=7, group_order=group_order).eval()
    mean = {"none": None, "high": high}.get(source, context)
    mean = None if mean is None else mean.mean((2, 3), keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(module(high, low, context), by_loops(module, high, low, mean))


def test_missing_context() -> None:
    high, low, _ = maps()
    with pytest.raises(ValueError, match="GLF: context must be a map for global_source='tmp', got None"):
        GLF(**SIZES)(high, low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"high_channels": 6}, "high_channels must be a multiple of 4, got 6"),
        ({"group_channels": 5}, r"inter_channels must be a multiple of group_channels \(5\), got 12"),
        ({"reduction": 0}, "reduction must be a whole number from 1, got 0"),
        ({"reduction": 13}, r"reduction must be from 1 to inter_channels \(12\), got 13"),
        ({"kernel_size": 4}, "kernel_size must be one of 1, 3, 5, 7, got 4"),
        ({"global_source": "b"}, "global_source must be one of 'tmp', 'high', 'c5', 'none', got 'b'"),
        ({"group_order": "mixed"}, "group_order must be one of 'blocked', 'interleaved', got 'mixed'"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_bad_arguments(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLF(**{**SIZES, **change})


@pytest.mark.parametrize("steps", [1, 2])
def test_carafe_fusion_crops(steps: int) -> None:
    module = CarafeFusion(4, 3, 5, steps=steps).eval()
    low = torch.randn(1, 3, 7, 9)
    high = torch.randn(1, 4, -(-7 // 2**steps), -(-9 // 2**steps))
    assert module(high, low).shape == (1, 5, 7, 9)


def test_static_fusion() -> None:
    torch.manual_seed(0)
    high, low = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 6, 10)
    module = StaticFusion(4, 3, 5).eval()
    up = F.interpolate(high, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(high, low), module.conv(torch.cat([up, low], 1)))
