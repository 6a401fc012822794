# SPDX-License-Identifier: Apache-2.0
"""Fused copies of all models against the models themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyindexnet import use_backend
from pyindexnet.models import create_model, fuse, list_models
from pyindexnet.nn import FusedConv, InPlaceABN
from pyindexnet.nn.conv import ConvBNAct
from pyindexnet.ops import winograd
from pyindexnet.testing.parity import error, tolerance

SMALL: dict[str, dict[str, Any]] = {
    "deep_matting": {"width": 1 / 16},
    "tmfnet": {"width": 1 / 8},
    "tmfnet_baseline": {"width": 1 / 8},
}
INDEX_NETWORKS = ("hin", "o2o_modelwise", "o2o_stagewise", "o2o", "m2o", "max", "hmi", "bilinear")
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, SMALL.get(name, {"width": 1 / 4})) for name in list_models() if name != "indexnet_matting"),
    *(("indexnet_matting", {"width": 1 / 4, "index_network": kind}) for kind in INDEX_NETWORKS),
    ("indexnet_matting", {"width": 1 / 4, "decoder": "skip", "aspp": False, "nonlinear": False}),
    ("indexnet_matting", {"width": 1 / 4, "decoder_conv": "depsep", "output_stride": 16}),
]
IDS = ["-".join([name, *(str(v) for k, v in options.items() if k != "width")]) for name, options in CASES]


def trained(name: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A model whose batch norms have statistics of their own, in evaluation mode, and an input of odd size."""
    torch.manual_seed(0)
    model = create_model(name, **options)
    x = torch.randn(2, 6 if name.startswith("tmfnet") else 4, 75, 61)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, InPlaceABN)):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x[:1]


def longest_sum(model: nn.Module) -> int:
    """Values that a convolution sums for an output, at most."""
    return max(m.weight[0].numel() for m in model.modules() if isinstance(m, nn.Conv2d))


def assert_same(fused: nn.Module, model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Under the tolerance rule, the model itself in the same dtype being the reference."""
    with torch.inference_mode():
        gold = copy.deepcopy(model).double()(x.double())
        bound = tolerance(gold, error(copy.deepcopy(model).to(dtype)(x.to(dtype)), gold), longest_sum(model), dtype)
        found = error(fused(x.to(dtype)), gold)
    assert found <= bound, f"error {found:.3e}, bound {bound:.3e}"


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_output(name: str, options: dict[str, Any]) -> None:
    model, x = trained(name, options)
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, FusedConv) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert_same(fused, model, x)
    assert_same(fuse(fused), model, x)  # once more changes nothing
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", list_models())
def test_bfloat16(name: str) -> None:
    model, x = trained(name, SMALL.get(name, {"width": 1 / 4}))
    assert_same(model.fuse().to(torch.bfloat16), model, x, torch.bfloat16)


def test_plain_path_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oneDNN, as on a GPU."""
    model, x = trained("indexnet_matting", {"width": 1 / 4})
    monkeypatch.setattr("pyindexnet.nn.fused_conv._eager", lambda x: False)
    assert_same(model.fuse(), model, x)


@pytest.mark.skipif(winograd._extension.MODULE is None, reason=winograd._extension.REASON)
def test_minimal_filtering_takes_part() -> None:
    """At the published width the large decoder stages are wide enough for it; a forced reference backend is obeyed."""
    model, x = trained("indexnet_matting", {"index_width": 1})
    fused = model.fuse()
    assert_same(fused, model, x)

    stage = fused.decoder[0].conv
    assert stage._kept[0][0] == "filtered"
    stage._kept = None
    with use_backend("reference"):
        assert_same(fused, model, x)
    assert stage._kept is None  # PyTorch's convolution, with the weights as they are


def test_weights_may_change_after_a_call() -> None:
    model, x = trained("indexnet_matting", {"width": 1 / 2})
    fused = model.fuse()
    with torch.inference_mode():
        fused(x)
    other, _ = trained("indexnet_matting", {"width": 1 / 2, "index_network": "m2o"})
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    fused.load_state_dict(other.fuse().state_dict())
    assert_same(fused, other, x)
    assert_same(copy.deepcopy(fused), other, x)


def test_gradient_of_the_input() -> None:
    model, x = trained("indexnet_matting", {"width": 1 / 4})
    model, fused = model.double(), model.double().fuse()
    grads = [torch.autograd.grad(m(y).sin().sum(), y)[0] for m in (model, fused) for y in [x.double().requires_grad_()]]
    torch.testing.assert_close(grads[1], grads[0])


def test_fusing_within_inference_mode() -> None:
    model, x = trained("deeplabv3plus_matting", {"width": 1 / 4})
    with torch.inference_mode():
        fused = model.fuse()
    assert not any(p.is_inference() for p in fused.parameters())
    assert_same(fused, model, x)


def test_compiled() -> None:
    """Inductor with freezing."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(ConvBNAct(4, 8, 3), create_model("refinenet_matting").levels[3].pooling.links[0][1])
    model[1] = ConvBNAct(8, 8, 3, stride=2)
    for unit in model:
        unit.bn.running_var.uniform_(0.5, 1.5)
        unit.bn.running_mean.normal_()
    assert_same(fuse(model, compile=True), model.eval(), torch.randn(1, 4, 33, 17))


def test_batch_norm_without_statistics() -> None:
    unit = ConvBNAct(4, 4, 1)
    unit.bn = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="FusedConv: norm must be a batch norm with running statistics, got BatchNorm2d"):
        fuse(nn.Sequential(unit))
