# SPDX-License-Identifier: Apache-2.0
"""Metrics and pictures while a network trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyindexnet.matting.evaluation import evaluate_items, mean_metrics
from pyindexnet.matting.inference import MEMORY_FORMAT, predict_alpha
from pyindexnet.matting.procedural import ProceduralMatting
from pyindexnet.matting.training.config import TrainingConfig
from pyindexnet.matting.training.data import Batch, network_input, trimap_encoding


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and training mode again afterwards."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def validate(model: nn.Module, config: TrainingConfig) -> dict[str, float]:
    """Mean metrics on the first items of the generator's test split."""
    size = config.validation.size
    items = ProceduralMatting((size, size), config.validation.items, seed=config.seed, split="test")
    with evaluating(model):
        rows = evaluate_items(lambda image, trimap: predict_alpha(model, image, trimap), items)
        return mean_metrics(list(rows))


def sample_mattes(model: nn.Module, batch: Batch, count: int) -> Tensor:
    """Image, trimap, alpha and prediction of samples of a batch side by side, one below the other, (3, H', W')."""
    image, trimap, alpha = (batch[key][:count] for key in ("image", "trimap", "alpha"))
    with evaluating(model), torch.no_grad():
        stacked = network_input(image, trimap, trimap_encoding(model)).contiguous(memory_format=MEMORY_FORMAT)
        prediction = model(stacked).float().clamp(0, 1)
    prediction = torch.where(trimap == 0.5, prediction, trimap)
    columns = [image, *(grey.expand_as(image) for grey in (trimap, alpha, prediction))]
    return torch.cat([torch.cat(list(column), 1) for column in columns], 2).cpu()
