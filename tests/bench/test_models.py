# SPDX-License-Identifier: Apache-2.0
"""The network in its published form, and the rows that the command ``models`` gives."""

from __future__ import annotations

import copy

import pytest
import torch

from bench.gate import WrongResult
from bench.models import OPTIONS, check_model, published_form, run_models
from bench.run import Effort, make_clock
from pyindexnet import use_backend
from pyindexnet.models import create_model


def test_published_form_is_the_same_network() -> None:
    """Outputs, training mode included, and the gradient of the input, in float64."""
    torch.manual_seed(0)
    model = create_model("indexnet_matting", **OPTIONS).double()
    form = published_form(model)
    x = torch.randn(2, 4, 64, 64, dtype=torch.float64, requires_grad=True)
    outputs = []
    for network in (model, form):
        torch.manual_seed(1)  # of the dropout
        with use_backend("reference"):
            outputs.append(network(x))
    y, z = outputs
    torch.testing.assert_close(z, y)
    (ours,), (theirs,) = (torch.autograd.grad(out.sin().sum(), x) for out in (y, z))
    torch.testing.assert_close(theirs, ours)
    assert sum(p.numel() for p in form.parameters()) == sum(p.numel() for p in model.parameters())


def test_gate() -> None:
    torch.manual_seed(0)
    model = create_model("indexnet_matting", **OPTIONS)
    check_model("eager", published_form(model), None, "cpu")
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1.001)
    with pytest.raises(WrongResult, match="indexnet_matting, wrong: error"):
        check_model("wrong", wrong, "reference", "cpu")


def test_rows() -> None:
    cases = (("forward", (1, 4, 32, 32)), ("training step", (2, 4, 64, 64)))
    effort = Effort(rounds=3, seconds=0.0, max_seconds=0.0)
    found = list(run_models(cases, ("channels_last",), [], False, "cpu", make_clock("cpu"), effort, {"commit": "abc"}))
    assert [[row["backend"] for row in rows] for rows in found] == [["eager", "reference"]] * 2
    assert [rows[0]["mode"] for rows in found] == ["forward", "training step"]
    for row in (*found[0], *found[1]):
        assert row["gb_s"] == row["pct_copy"] == row["speedup_compile"] == ""
        assert float(row["speedup_eager"]) > 0
        assert float(row["peak_mib"]) > 0
        assert row["layout"] == "channels_last"
        assert row["commit"] == "abc"
    assert float(found[1][0]["peak_mib"]) > float(found[0][0]["peak_mib"])
