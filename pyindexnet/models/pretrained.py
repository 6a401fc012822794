# SPDX-License-Identifier: Apache-2.0
"""Networks with the weights that come with the package; their model card is docs/weights.md."""

from __future__ import annotations

import sys
from importlib import resources

from torch import nn

from pyindexnet.models.checkpoints import model_from_checkpoint
from pyindexnet.nn.arguments import require_one_of

#: Licence and origin by name, as printed where the weights are loaded.
PRETRAINED = {"procedural": "Apache-2.0; trained on generated pictures alone, no data set (docs/weights.md)"}


def pretrained_model(name: str = "procedural") -> nn.Module:
    """A network with weights of this package; prints their licence on standard error.

    Args:
        name: one of :data:`PRETRAINED`. "procedural": an ``indexnet_matting`` trained by the configuration of that name.
    Returns:
        The model in float32, in evaluation mode; ``model.config`` holds name and options.
    Raises:
        ValueError: the name.
    """
    require_one_of("pretrained_model", "name", name, tuple(PRETRAINED))
    with resources.as_file(resources.files("pyindexnet.weights") / f"{name}.safetensors") as path:
        model = model_from_checkpoint(path)
    print(f"weights {name!r} of {model.config['name']}: {PRETRAINED[name]}", file=sys.stderr)  # type: ignore[index]
    return model.eval()
