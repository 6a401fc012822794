# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.matting.data.thread_count FOLDER``: OpenCV's threads in a forked worker, in a process of its own.

The threads that OpenCV starts and stops here, and the fork beside them, should not happen in the process of all other tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader

from pyindexnet.matting.data import CompositionDataset, foreground_folders


class ThreadCount(CompositionDataset):
    """Items are the number of OpenCV's threads while one is made."""

    def __getitem__(self, key: int | tuple[int, int]) -> Any:
        super().__getitem__(key)
        return cv2.getNumThreads()


def main(folder: Path) -> None:
    foregrounds = foreground_folders(folder / "fg", folder / "alpha")
    counts = ThreadCount(foregrounds, sorted((folder / "bg").iterdir()), "indexnet")
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (0, 0), 3)  # starts the threads that the worker then lacks
    print(*DataLoader(counts, batch_size=None, num_workers=1, timeout=60), counts[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
