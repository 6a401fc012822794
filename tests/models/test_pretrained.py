# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the package."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
import safetensors
import torch

from pyindexnet.matting import evaluation, predict_alpha
from pyindexnet.matting.procedural import ProceduralMatting
from pyindexnet.matting.training import check_config, load_config
from pyindexnet.models import PRETRAINED, pretrained_model

WEIGHTS = resources.files("pyindexnet.weights")


@pytest.mark.parametrize("name", list(PRETRAINED))
def test_file_is_small_half_and_finite(name: str) -> None:
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert len(data) <= 8_000_000
    tensors = safetensors.torch.load(data).values()
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(t).all() for t in tensors)


def test_the_shipped_recipe_made_them() -> None:
    with resources.as_file(WEIGHTS / "procedural.safetensors") as path, safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    recipe = load_config("procedural")
    assert check_config(json.loads(metadata["training"]), "weights") == recipe
    assert json.loads(metadata["pyindexnet"]) == {"name": recipe.model.name, "options": recipe.model.options}


def test_licence_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = pretrained_model("procedural")
    assert not model.training
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"weights 'procedural' of indexnet_matting: {PRETRAINED['procedural']}\n"


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="name must be one of 'procedural', got 'coco'"):
        pretrained_model("coco")


def test_mattes_are_better_than_the_trimap() -> None:
    """On items that training never saw: another split of the generator."""
    items = list(ProceduralMatting((160, 160), 4, split="test", kinds=("hair", "fur", "solid", "foliage")))
    model = pretrained_model()
    own = evaluation.mean_metrics(list(evaluation.evaluate_items(lambda i, t: predict_alpha(model, i, t), items)))
    trimap = evaluation.mean_metrics(list(evaluation.evaluate_items(evaluation.trimap_baseline, items)))
    assert own["sad"] < 0.75 * trimap["sad"]
    assert np.isfinite(list(own.values())).all()
