# SPDX-License-Identifier: Apache-2.0
"""A run that takes a second, and processes that start without importing PyTorch again."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from pyindexnet.matting.training import TrainingConfig, check_config, train

MODEL = {"name": "indexnet_matting", "options": {"index_network": "o2o_stagewise", "width": 1 / 16, "decoder_kernel_size": 3}}


def tiny_config(**values: Any) -> TrainingConfig:
    """Six steps of a network of width 1/16; ``values`` replace sections."""
    base: dict[str, Any] = {
        "model": MODEL,
        "data": {"source": "procedural", "length": 10, "kinds": ["bubbles", "grass"]},
        "crop": 32,
        "batch_size": 4,
        "loss": {"alpha": 1.0, "composition": 1.0},
        "schedule": {"kind": "cosine", "steps": 6, "warmup": 2},
        "optimizer": {"lr": 0.001},
        "checkpoints": {"every": 2},
        "log": {"every": 1},
    }
    return check_config({**base, **values})


def run(config: dict[str, Any], folder: Path, *, resume: bool = False) -> None:
    """Target of a child process."""
    torch.set_num_threads(1)
    train(check_config(config), folder, resume=resume, quiet=True)


def forkserver() -> ForkServerContext:
    """Processes forked from a clean one that has imported the package: neither threads nor autograd have run in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyindexnet.matting.training", "tests.matting.training.tiny"])
    return context
