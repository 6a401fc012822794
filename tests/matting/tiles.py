# SPDX-License-Identifier: Apache-2.0
"""What the tests of tiles share: a small network, and the comparison with the whole image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyindexnet.matting.inference import MEMORY_FORMAT
from pyindexnet.matting.tiling import make_tiles, run_tiles
from pyindexnet.testing.parity import tolerance


class Small(nn.Module):
    """Two scales, a 3x3 convolution at each end; ``middle`` works at half the size."""

    size_rule = (4, 0)

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x, *, dilation: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 6, 3, padding=dilation, dilation=dilation)
        self.last = nn.Conv2d(6, 1, 3, padding=1)
        self.middle = middle
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(F.max_pool2d(self.first(x), 2))
        return self.last(F.interpolate(y, size=x.shape[2:], mode="nearest"))


def image(height: int, width: int, channels: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((height, width, channels))


def runner(model: nn.Module) -> Callable[[np.ndarray], Tensor]:
    return lambda part: model(torch.from_numpy(part).permute(2, 0, 1)[None].contiguous(memory_format=MEMORY_FORMAT))[0, 0]


def assert_tiles_agree(model: nn.Module, x: np.ndarray, shape: tuple[int, int], overlap: tuple[int, int]) -> None:
    """In float64: what is left is the float32 of the prediction."""
    model = model.double()
    tiles = make_tiles((x.shape[0], x.shape[1]), shape, overlap)
    assert len(tiles) > 1
    with torch.inference_mode():
        whole = runner(model)(x).numpy()
        prediction, seam = run_tiles(runner(model), x, tiles)
    bound = tolerance(torch.from_numpy(whole), 0.0, 1, torch.float32)
    assert np.abs(prediction - whole).max() <= bound
    assert seam <= 2 * bound
