# SPDX-License-Identifier: Apache-2.0
"""Networks, the registry that builds them by name, and checkpoints."""

from pyindexnet.models.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from pyindexnet.models.indexnet_matting import IndexNetMatting
from pyindexnet.models.mobilenetv2 import MobileNetV2
from pyindexnet.models.registry import create_model, list_models, model_options, register_model

__all__ = [
    "CheckpointError",
    "IndexNetMatting",
    "MobileNetV2",
    "create_model",
    "list_models",
    "load_checkpoint",
    "model_options",
    "register_model",
    "save_checkpoint",
]
