# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.triton_tiles``: tiles of the Triton kernels of the indexed operators against each other, on this GPU.

Prints, for each kind of call, the bandwidth of every tile as a fraction of the copy bandwidth, the one in use marked. The
tables that a result goes into are at the top of kernels/index_cell_launch.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.testing import do_bench

from pyindexnet.kernels import index_cell_launch, indexed_pool, indexed_upsample

# (lanes, warps): one to eight lanes per thread.
TILES = [(lanes, warps) for lanes in (128, 256, 512, 1024) for warps in (2, 4, 8, 16) if 32 <= lanes // warps <= 256]


def calls(
    size: tuple[int, int, int, int], ratio: int, dtype: torch.dtype, channels_last: bool, holistic: bool, device: str
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, bytes moved, call) of pooling and upsampling, forward and backward; ``size`` of the high resolution."""
    n, c, height, width = size
    h, w, ci = height // ratio, width // ratio, 1 if holistic else c
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).to(memory_format=layout)

    high, low = tensor(n, c, h * ratio, w * ratio), tensor(n, c, h, w)
    logits = tensor(n, ratio * ratio * ci, h, w).unflatten(1, (-1, ci)).transpose(1, 2)  # position-major
    how = {"pool": "sigmoid_softmax", "upsample": "sigmoid"}
    forward = sum(t.nbytes for t in (high, low, logits))
    pool_backward = forward + high.nbytes + logits.nbytes
    upsample_backward = forward + low.nbytes + logits.nbytes
    yield "pool", forward, lambda: indexed_pool.indexed_pool(high, logits, ratio, how["pool"])
    yield (
        "pool backward",
        pool_backward,
        lambda: indexed_pool.indexed_pool_backward(low, high, logits, ratio, how["pool"], True, True),
    )
    yield (
        "upsample",
        forward,
        lambda: indexed_upsample.indexed_upsample(low, logits, ratio, how["upsample"], h * ratio, w * ratio),
    )
    yield (
        "upsample backward",
        upsample_backward,
        lambda: indexed_upsample.indexed_upsample_backward(high, low, logits, ratio, how["upsample"], True, True),
    )


def sweep(size: tuple[int, int, int, int], ratio: int, dtype: torch.dtype, device: str) -> None:
    source = torch.zeros(size, device=device)
    copy = 2 * source.nbytes / do_bench(source.clone)
    print(f"copy {copy / 1e9:.2f} TB/s; {size}, ratio {ratio}, {dtype}; fractions of it by lanes/warps", flush=True)
    for channels_last in (False, True):
        tiles = index_cell_launch._TILES[channels_last]
        used = tiles[ratio]
        for holistic in (False, True):
            for name, moved, call in calls(size, ratio, dtype, channels_last, holistic, device):
                cells = []
                for tile in TILES:
                    with mock.patch.dict(tiles, {ratio: tile}):
                        speed = moved / do_bench(call)
                    cells.append((speed / copy, f"{tile[0]}/{tile[1]}" + ("*" if tile == used else "")))
                row = "  ".join(f"{label} {fraction:.2f}" for fraction, label in sorted(cells, reverse=True))
                kind = f"{'channels_last' if channels_last else 'contiguous':13} {'holistic' if holistic else 'depthwise':9}"
                print(f"{kind} {name:17} {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.triton_tiles", description=__doc__)
    parser.add_argument("--size", type=int, nargs=4, default=(8, 32, 1024, 1024), metavar=("N", "C", "H", "W"))
    parser.add_argument("--ratio", type=int, nargs="+", default=[2], choices=(2, 3, 4))
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    for ratio in arguments.ratio:
        for dtype in arguments.dtype:
            sweep(tuple(arguments.size), ratio, getattr(torch, dtype), "cuda")


if __name__ == "__main__":
    main()
