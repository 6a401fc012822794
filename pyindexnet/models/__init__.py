# SPDX-License-Identifier: Apache-2.0
"""Networks, the registry that builds them by name, and checkpoints."""

from pyindexnet.models.a2u_matting import A2UMatting
from pyindexnet.models.checkpoints import (
    CheckpointError,
    UnknownModelError,
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
)
from pyindexnet.models.deep_matting import DeepMatting
from pyindexnet.models.deeplabv3plus_matting import DeepLabV3PlusMatting
from pyindexnet.models.fuse import fuse
from pyindexnet.models.indexnet_matting import IndexNetMatting
from pyindexnet.models.mobilenetv2 import MobileNetV2
from pyindexnet.models.pretrained import PRETRAINED, pretrained_model
from pyindexnet.models.refinenet_matting import RefineNetMatting
from pyindexnet.models.registry import create_model, list_models, model_options, register_model
from pyindexnet.models.resnet import ResNet50
from pyindexnet.models.tmfnet import TMFNet, TMFNetBaseline

__all__ = [
    "PRETRAINED",
    "A2UMatting",
    "CheckpointError",
    "DeepLabV3PlusMatting",
    "DeepMatting",
    "IndexNetMatting",
    "MobileNetV2",
    "RefineNetMatting",
    "ResNet50",
    "TMFNet",
    "TMFNetBaseline",
    "UnknownModelError",
    "create_model",
    "fuse",
    "list_models",
    "load_checkpoint",
    "model_from_checkpoint",
    "model_options",
    "pretrained_model",
    "register_model",
    "save_checkpoint",
]
