# SPDX-License-Identifier: Apache-2.0
"""How much memory a network's forward pass takes, without running it."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, as operators return them and Python lets go of them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                size = storage.nbytes()
                self._known[storage] = size
                weakref.finalize(storage, self._release, size)
                self._now += size
                self.peak = max(self.peak, self._now)
        return returned

    def _release(self, size: int) -> None:
        self._now -= size


def peak_bytes(model: nn.Module, shape: tuple[int, ...], memory_format: torch.memory_format) -> int:
    """Most bytes of tensors alive during a forward pass without gradients, its input included, weights not.

    The pass runs on tensors that have sizes and no values: any size costs the same. What an operator allocates inside is not
    seen.

    Args:
        model: in evaluation mode.
        shape: of the input, (N, C, H, W). memory_format: of the input.
    """
    parameter = next(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _LiveBytes() as live:
        model(torch.empty(shape, dtype=parameter.dtype, device=parameter.device).contiguous(memory_format=memory_format))
    return live.peak


def used_bytes(device: torch.device) -> int:
    """What the process holds now: allocated on a CUDA device; resident in memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * _page_size()


def _page_size() -> int:
    import resource

    return resource.getpagesize()


def parse_size(text: str) -> int:
    """Bytes of ``6GiB``, ``6G``, ``512M`` or ``1000000``; units are powers of 1024.

    Raises:
        ValueError: not such a size, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"size must be a number with K, M, G or T, such as 6GiB, got {text!r}")
    return size


def format_size(size: float, rounding: Callable[[float], int] = round) -> str:
    """``5.9 GiB``, ``310 MiB``; ``rounding`` is of the last digit shown."""
    return f"{rounding(size / 2**30 * 10) / 10:.1f} GiB" if size >= 2**30 else f"{rounding(size / 2**20)} MiB"
