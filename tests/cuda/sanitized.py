# SPDX-License-Identifier: Apache-2.0
"""Runs the emulated CUDA kernels of one operator, under a sanitizer: ``python -m tests.cuda.sanitized LIBRARY OP``.

The sanitizer must be in the process from its start, so this is no test but a program that tests run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pyindexnet.testing import SPECS, measure
from tests.cuda.emulation import ROOT, SUFFIX, register
from tests.cuda.samples import KERNEL_SAMPLES


def main() -> None:
    library, name = sys.argv[1:3]
    torch.set_num_threads(1)
    register(Path(library), [ROOT / f"csrc/cuda/{name}.cu"])
    wrong = 0
    for sample in KERNEL_SAMPLES[name]:
        for layout in ("contiguous", "channels_last"):
            for dtype in (torch.float32, torch.bfloat16):
                wrong += sum(not row.ok for row in measure(SPECS[name], sample, SUFFIX, dtype, "cpu", layout))
    print(f"finished, {wrong} wrong")


if __name__ == "__main__":
    main()
