# SPDX-License-Identifier: Apache-2.0
"""Loss, optimizer, learning rate and frozen batch norms of a run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyindexnet.matting import losses
from pyindexnet.matting.training.config import Loss, Optimizer, Schedule, TrainingConfig
from pyindexnet.matting.training.data import Batch
from pyindexnet.matting.training.muon import Muon
from pyindexnet.nn.inplace_abn import InPlaceABN


def loss_terms(config: Loss, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The weighted terms of the loss on the unknown region, by name; their sum is minimised.

    Every term is a mean over samples, so that a step costs the same in one batch as in micro-batches.

    Args:
        prediction: (N, 1, H, W). batch: with ``alpha``, ``trimap``, ``image``, ``foreground``, ``background``.
    Returns:
        Scalars.
    """
    target, mask = batch["alpha"], batch["trimap"] == 0.5
    parts = {
        "alpha": lambda: losses.alpha_loss(prediction, target, mask=mask, convention=config.convention),
        "composition": lambda: losses.composition_loss(
            prediction, batch["image"], batch["foreground"], batch["background"], mask=mask, convention=config.convention
        ),
        "laplacian": lambda: losses.laplacian_loss(prediction, target, mask=mask, per_sample=True),
        "gradient": lambda: losses.gradient_loss(
            prediction, target, mask=mask, penalty=config.gradient_penalty, per_sample=True
        ),
        "multiscale": lambda: losses.multiscale_alpha_loss(prediction, target, mask=mask, convention=config.convention),
    }
    return {name: weight * parts[name]() for name, weight in config.weights().items()}


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """Optimizer over the parameters that are not frozen; those of ``model.encoder`` in a group of their own.

    Raises:
        ValueError: ``encoder_factor`` for a model without an encoder.
    """
    encoder = getattr(model, "encoder", None)
    if encoder is None and config.encoder_factor != 1:
        raise ValueError("train: optimizer.encoder_factor must be 1 for a model without an encoder")
    inside = set() if encoder is None else set(encoder.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p not in inside], "factor": 1.0},
        {"params": [p for p in trained if p in inside], "factor": config.encoder_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.name == "muon":
        return Muon(
            groups,
            lr=config.lr,
            betas=config.betas,
            momentum=config.momentum,
            matrix_factor=config.matrix_factor,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int) -> float:
    """Give every group its rate for a step, counted from 0; returns that of a group with factor 1."""
    lr = config.optimizer.lr * schedule_factor(config.schedule, step)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    return lr


def schedule_factor(schedule: Schedule, step: int) -> float:
    """What multiplies the base rate at a step: a pure function, so that it needs no state to resume."""
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.kind == "steps":
        return schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    done = (step - schedule.warmup) / (schedule.steps - schedule.warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule.kind == "cosine" else (1 - done) ** schedule.power


def freeze_batch_norms(model: nn.Module, where: str) -> None:
    """Stop the batch norms of the encoder, or all, from learning: evaluation mode, for good, and no gradient.

    ``model.train()`` leaves them in evaluation mode.

    Args:
        where: "none", "encoder" or "all".
    Raises:
        ValueError: "encoder" for a model without one.
    """
    if where == "none":
        return
    root = model if where == "all" else getattr(model, "encoder", None)
    if root is None:
        raise ValueError("train: freeze_batch_norm must be none or all for a model without an encoder")
    for module in root.modules():
        if isinstance(module, (_BatchNorm, InPlaceABN)):
            module.__class__ = _frozen(type(module))  # type: ignore[assignment]
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with a ``train`` that stays in evaluation mode; still an instance of the old one, and can be copied."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return kind.train(self, False)

    return type(f"Frozen{kind.__name__}", (kind,), {"train": train})
