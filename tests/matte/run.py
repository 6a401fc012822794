# SPDX-License-Identifier: Apache-2.0
"""What the tests of ``pyindexnet matte`` share beside their fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyindexnet.matting import predict_alpha
from pyindexnet.models import create_model, fuse
from tests.matting.pictures import encoded

TINY = ("--option", "width=0.25")  # a small network: these tests are about files
UNTRAINED = "the network is untrained"


@dataclass
class Result:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def one_error(self) -> str:
        """The only line on standard error of a run that failed."""
        assert self.code == 1
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").rstrip()


def tiny_model(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_model("indexnet_matting", width=0.25).eval().to(memory_format=torch.channels_last)


def fused_alpha(model: torch.nn.Module, *arguments: Any, **options: Any) -> np.ndarray:
    """What the command predicts: ``predict_alpha`` of the fused network."""
    return predict_alpha(fuse(model), *arguments, **options)


def truncated(suffix: str, dtype: type = np.uint8) -> bytes:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (45, 60, 3)).astype(dtype)
    return encoded(suffix, noise)[:-2000]
