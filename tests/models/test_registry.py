# SPDX-License-Identifier: Apache-2.0
"""Models by name."""

from __future__ import annotations

import pytest
from torch import nn

from pyindexnet.models import create_model, list_models, model_options, register_model, registry


def test_names_are_sorted_and_buildable() -> None:
    assert list_models() == sorted(list_models())
    assert "indexnet_matting" in list_models()


def test_config_holds_name_and_options() -> None:
    model = create_model("indexnet_matting", width=0.25, decoder="skip")
    assert model.config == {"name": "indexnet_matting", "options": {"width": 0.25, "decoder": "skip"}}


def test_options_and_defaults() -> None:
    options = model_options("indexnet_matting")
    assert options["index_network"] == "m2o"
    assert options["index_width"] == 2
    with pytest.raises(ValueError, match=r"name must be one of .*, got 'resnet'"):
        model_options("resnet")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*indexnet_matting.*, got 'indexnet_mating' \(did you mean"):
        create_model("indexnet_mating")


def test_unknown_option() -> None:
    with pytest.raises(
        ValueError, match=r"option of indexnet_matting must be one of index_network, .*, got 'decodr' \(did you mean 'decoder'"
    ):
        create_model("indexnet_matting", decodr="unet")


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", {})

    @register_model("linear")
    def build(*, bias: bool = True) -> nn.Module:
        return nn.Linear(2, 3, bias=bias)

    assert list_models() == ["linear"]
    assert create_model("linear", bias=False).bias is None
    with pytest.raises(ValueError, match="name must be new, got 'linear'"):
        register_model("linear")(build)
