# SPDX-License-Identifier: Apache-2.0
"""The emulated CUDA kernels under address, undefined-behaviour and thread sanitizers, and proof that these see defects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from .emulation import ROOT, SANITIZERS, build, compiler, sources

RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}


def sanitized(sanitizer: str, library: Path, op: str) -> subprocess.CompletedProcess[str]:
    """Runs all samples of ``op`` in a Python process with the sanitizer's runtime loaded first."""
    runtimes = [
        subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in RUNTIMES[sanitizer]
    ]
    if not all(Path(path).is_absolute() for path in runtimes):
        pytest.skip(f"the compiler has no {' or '.join(RUNTIMES[sanitizer])}")
    env = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",  # leaks of the Python interpreter are not ours
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
        "TSAN_OPTIONS": "exitcode=66",
        "OMP_NUM_THREADS": "1",
        "PYINDEXNET_NO_EXTENSION": "1",
    }
    command: Sequence[str] = (sys.executable, "-m", "tests.cuda.sanitized", str(library), op)
    if sanitizer == "thread" and shutil.which("setarch"):
        command = ("setarch", "-R", *command)  # older runtimes cannot place their shadow memory under address randomisation
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_clean(sanitizer: str, source: Path) -> None:
    done = sanitized(sanitizer, build([source], SANITIZERS[sanitizer]), source.stem)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "finished, 0 wrong" in done.stdout


def mutant(folder: Path, old: str, new: str, occurrence: int) -> Path:
    """A copy of csrc whose kernels have one piece of code replaced; the path of its indexed_pool.cu."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    header = folder / "csrc/cuda/index_cell.cuh"
    parts = header.read_text().split(old)
    assert len(parts) > occurrence + 1, f"the kernels no longer contain {old!r} {occurrence + 1} times"
    header.write_text(old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :]))
    return folder / "csrc/cuda/indexed_pool.cu"


@pytest.mark.parametrize("barrier", [0, 1])
def test_a_missing_barrier_is_a_race(tmp_path: Path, barrier: int) -> None:
    """Without either __syncthreads the sums in shared memory race, and the thread sanitizer must say so."""
    source = mutant(tmp_path, "__syncthreads();", "", barrier)
    done = sanitized("thread", build([source], SANITIZERS["thread"]), source.stem)
    assert done.returncode == 66, done.stderr[-6000:]
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "holistic_backward_rows_kernel" in done.stderr


def test_a_loose_bound_is_an_overflow(tmp_path: Path) -> None:
    """With one group too many the kernel leaves its tensors, and the address sanitizer must say so."""
    source = mutant(tmp_path, "index >= grid.total", "index > grid.total", 0)
    done = sanitized("address", build([source], SANITIZERS["address"]), source.stem)
    assert done.returncode == 66, done.stderr[-6000:]
    assert "heap-buffer-overflow" in done.stderr
    assert "depthwise_kernel" in done.stderr
