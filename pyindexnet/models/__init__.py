# SPDX-License-Identifier: Apache-2.0
"""Networks, the registry that builds them by name, and checkpoints."""

from pyindexnet.models.mobilenetv2 import MobileNetV2
from pyindexnet.models.registry import create_model, list_models, model_options, register_model

__all__ = ["MobileNetV2", "create_model", "list_models", "model_options", "register_model"]
