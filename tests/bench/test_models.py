# SPDX-License-Identifier: Apache-2.0
"""The network in its published form, and the rows that the command ``models`` gives."""

from __future__ import annotations

import pytest
import torch

from bench.gate import WrongResult
from bench.models import Sides, Variant, check_model, model_side, run_models, variants
from bench.networks import NETWORKS
from bench.run import Effort, make_clock
from pyindexnet import backends, use_backend
from pyindexnet.models import create_model


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in NETWORKS] + [("tmfnet", {"group_order": "blocked"})])
def test_published_form_is_the_same_network(name: str, options: dict) -> None:
    """Outputs, training mode included, and the gradient of the input, in float64."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = create_model(name, **network.options, **options).double()
    form = network.published(model)
    x = network.picture((2, network.channels, 64, 64)).double().requires_grad_()
    outputs = []
    for module in (model, form):
        torch.manual_seed(1)  # of the dropout
        with use_backend("reference"):
            outputs.append(module(x))
    y, z = outputs
    torch.testing.assert_close(z, y)
    (ours,), (theirs,) = (torch.autograd.grad(out.sin().sum(), x) for out in (y, z))
    torch.testing.assert_close(theirs, ours)
    assert sum(p.numel() for p in form.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_gate(name: str) -> None:
    eager = variants(name, Sides(), "forward", "float32")["eager"]
    check_model(name, "eager", eager, "cpu")
    with torch.no_grad():
        next(eager.model.parameters()).mul_(1.001)
    with pytest.raises(WrongResult, match=f"{name}, wrong: error"):
        check_model(name, "wrong", eager, "cpu")


def test_overflow_is_no_result() -> None:
    """Where the reference network overflows too, there is nothing to judge by."""
    eager = variants("indexnet_matting", Sides(), "forward", "amp-float16")["eager"]
    with torch.no_grad():
        list(eager.model.parameters())[-1].fill_(1e5)
    with pytest.raises(WrongResult, match="error inf"):
        check_model("indexnet_matting", "eager", eager, "cpu")


needs_cpu = pytest.mark.skipif(
    backends.why_not("indexed_pool", "cpu") is not None, reason=str(backends.why_not("indexed_pool", "cpu"))
)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_form_runs_none_of_our_kernels(name: str) -> None:
    """One training step of the side that all others are compared with."""
    eager = variants(name, Sides(), "training step", "float32")["eager"]
    eager.model.train()
    network = NETWORKS[name]
    x = network.picture((2, network.channels, 64, 64))
    side = model_side("eager", eager, x, "training step")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        side.call(side.prepare())
    names = {event.key for event in trace.key_averages()}
    assert "aten::native_batch_norm_backward" in names
    assert not [key for key in names if "pyindexnet" in key]


@needs_cpu
def test_fused_copies_infer_alone() -> None:
    names = variants("indexnet_matting", Sides(["cpu"]), "forward", "bfloat16")
    assert list(names) == ["eager", "reference", "cpu", "cpu+fuse"]
    check_model("indexnet_matting", "cpu+fuse", names["cpu+fuse"], "cpu")
    everything = Sides(["cpu"], compiled=True, graphs=True, peers=["max-autotune", "freezing"])
    assert list(variants("indexnet_matting", everything, "training step", "float32")) == [
        *("eager", "reference", "cpu"),
        *("compile", "cpu+compile", "max-autotune"),
    ]
    forward = variants("indexnet_matting", everything, "forward", "float32")
    assert list(forward) == [
        *("eager", "reference", "cpu", "cpu+fuse", "cpu+fuse+graph"),
        *("compile", "cpu+compile", "cpu+fuse+compile", "max-autotune", "freezing"),
    ]
    assert {name for name, variant in forward.items() if variant.compiled} == {
        *("compile", "cpu+compile", "cpu+fuse+compile", "max-autotune", "freezing")
    }


@needs_cpu
@pytest.mark.parametrize("precision", ["float16", "amp-bfloat16"])
def test_precisions(precision: str) -> None:
    """Of weights, and of what the networks give."""
    weights, half = (torch.float16, torch.float16) if precision == "float16" else (torch.float32, torch.bfloat16)
    x = torch.randn(1, 4, 32, 32)
    for name, variant in variants("indexnet_matting", Sides(["cpu"]), "forward", precision).items():
        wanted = half if "fuse" in name else weights
        assert {p.dtype for p in variant.model.eval().parameters()} == {variant.dtype} == {wanted}
        with torch.no_grad():
            assert model_side(name, variant, x, "forward").call(None).dtype == half
    check_model("indexnet_matting", name, variant, "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_training_step(dtype: torch.dtype) -> None:
    """The gradients of float32, without the scale of the loss; weights move."""
    x, grads = torch.randn(2, 3, 8, 8), []
    for autocast in (None, dtype):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 1, 3, padding=1)
        before = model.weight.detach().clone()
        side = model_side("conv", Variant(model, torch.float32, autocast=autocast), x, "training step")
        side.call(side.prepare())
        assert not torch.equal(model.weight, before)
        assert model.weight.dtype == torch.float32
        grads.append(model.weight.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0.05, atol=0.02)


def test_rows() -> None:
    cases = (("forward", (1, 4, 32, 32)), ("training step", (2, 4, 64, 64)))
    effort = Effort(rounds=3, seconds=0.0, max_seconds=0.0)
    found = list(
        run_models(
            "indexnet_matting",
            cases,
            ("channels_last",),
            ("float32",),
            Sides(),
            "cpu",
            make_clock("cpu"),
            effort,
            {"commit": "abc"},
        )
    )
    assert [[row["backend"] for row in rows] for rows in found] == [["eager", "reference"]] * 2
    assert [rows[0]["mode"] for rows in found] == ["forward", "training step"]
    for row in (*found[0], *found[1]):
        assert row["gb_s"] == row["pct_copy"] == row["speedup_compile"] == ""
        assert float(row["speedup_eager"]) > 0
        assert float(row["peak_mib"]) > 0
        assert row["layout"] == "channels_last"
        assert row["commit"] == "abc"
    assert float(found[1][0]["peak_mib"]) > float(found[0][0]["peak_mib"])
