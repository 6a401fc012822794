# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: one, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among its group.

    Attributes:
        rank: 0 to ``count`` - 1. count: of the group. device: what this one computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Values (n,) of all processes, (count, n), on each of them."""
        if self.count == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(rows, values)
        return torch.stack(rows)


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the group that the environment of ``torchrun`` names (RANK, WORLD_SIZE, LOCAL_RANK); alone without it.

    Args:
        device: "cpu" (gloo), "cuda" (nccl; the GPU of the local rank) or "cuda:N" (one process).
    Raises:
        ValueError: one GPU for several processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, torch.device(device))
        return
    if device.startswith("cuda:"):
        raise ValueError(f"train: device must be cpu or cuda for {count} processes, got {device!r}")
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
    try:
        yield Processes(rank, count, torch.device(device))
    finally:
        dist.destroy_process_group()
