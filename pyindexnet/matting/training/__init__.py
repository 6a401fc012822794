# SPDX-License-Identifier: Apache-2.0
"""Training of matting networks: ``pyindexnet train CONFIG.yaml``."""

from pyindexnet.matting.training.config import TrainingConfig, check_config, load_config, shipped_configs
from pyindexnet.matting.training.loop import Result, train

__all__ = ["Result", "TrainingConfig", "check_config", "load_config", "shipped_configs", "train"]
