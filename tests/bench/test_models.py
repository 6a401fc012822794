# SPDX-License-Identifier: Apache-2.0
"""The network in its published form, and the rows that the command ``models`` gives."""

from __future__ import annotations

import copy

import pytest
import torch

from bench.gate import WrongResult
from bench.models import check_model, model_side, run_models, variants
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
    torch.manual_seed(0)
    model = create_model(name, **NETWORKS[name].options)
    check_model(name, "eager", NETWORKS[name].published(model), None, "cpu")
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1.001)
    with pytest.raises(WrongResult, match=f"{name}, wrong: error"):
        check_model(name, "wrong", wrong, "reference", "cpu")


needs_cpu = pytest.mark.skipif(
    backends.why_not("indexed_pool", "cpu") is not None, reason=str(backends.why_not("indexed_pool", "cpu"))
)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_form_runs_none_of_our_kernels(name: str) -> None:
    """One training step of the side that all others are compared with."""
    model, backend = variants(name, [], False, [], "training step", torch.float32)["eager"]
    network = NETWORKS[name]
    x = network.picture((2, network.channels, 64, 64))
    side = model_side("eager", model.train(), backend, x, "training step")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        side.call(side.prepare())
    names = {event.key for event in trace.key_averages()}
    assert "aten::native_batch_norm_backward" in names
    assert not [key for key in names if "pyindexnet" in key]


@needs_cpu
def test_fused_copies_infer_alone() -> None:
    sides = variants("indexnet_matting", ["cpu"], False, [], "forward", torch.bfloat16)
    assert list(sides) == ["eager", "reference", "cpu", "cpu+fuse"]
    model, backend = sides["cpu+fuse"]
    check_model("indexnet_matting", "cpu+fuse", model, backend, "cpu", torch.bfloat16)
    assert list(variants("indexnet_matting", ["cpu"], False, [], "training step", torch.float32)) == [
        "eager",
        "reference",
        "cpu",
    ]


def test_rows() -> None:
    cases = (("forward", (1, 4, 32, 32)), ("training step", (2, 4, 64, 64)))
    effort = Effort(rounds=3, seconds=0.0, max_seconds=0.0)
    found = list(
        run_models(
            "indexnet_matting", cases, ("channels_last",), [], False, "cpu", make_clock("cpu"), effort, {"commit": "abc"}
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
