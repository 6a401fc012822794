# SPDX-License-Identifier: Apache-2.0
"""The emulated CUDA kernels under address, undefined-behaviour and thread sanitizers, and proof that these see defects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


def mutant(folder: Path, old: str, new: str, occurrence: int) -> Path:
    """A copy of csrc whose kernels have one piece of code replaced; the path of its indexed_pool.cu."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    header = folder / "csrc/cuda/index_cell.cuh"
    parts = header.read_text().split(old)
    assert len(parts) > occurrence + 1, f"the kernels no longer contain {old!r} {occurrence + 1} times"
    header.write_text(old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :]))
    return folder / "csrc/cuda/indexed_pool.cu"


Libraries = dict[tuple[str, str], "Future[Path]"]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libraries]:
    """All sanitized builds by (sanitizer, operator or defect), made two at a time while the first tests run."""
    compiler()  # skips here rather than in a thread
    todo = {(sanitizer, source.stem): source for sanitizer in SANITIZERS for source in sources()}
    for barrier in (0, 1):
        todo["thread", f"barrier{barrier}"] = mutant(tmp_path_factory.mktemp("barrier"), "__syncthreads();", "", barrier)
    todo["address", "bound"] = mutant(tmp_path_factory.mktemp("bound"), "index >= grid.total", "index > grid.total", 0)
    with ThreadPoolExecutor(2) as pool:
        yield {key: pool.submit(build, [source], SANITIZERS[key[0]]) for key, source in todo.items()}


@pytest.mark.parametrize("op", [source.stem for source in sources()])
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_clean(libraries: Libraries, sanitizer: str, op: str) -> None:
    done = sanitized(sanitizer, libraries[sanitizer, op].result(), op)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "finished, 0 wrong" in done.stdout


@pytest.mark.parametrize("barrier", [0, 1])
def test_a_missing_barrier_is_a_race(libraries: Libraries, barrier: int) -> None:
    """Without either __syncthreads the sums in shared memory race, and the thread sanitizer must say so."""
    done = sanitized("thread", libraries["thread", f"barrier{barrier}"].result(), "indexed_pool")
    assert done.returncode == 66, done.stderr[-6000:]
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "holistic_backward_rows_kernel" in done.stderr


def test_a_loose_bound_is_an_overflow(libraries: Libraries) -> None:
    """With one group too many the kernel leaves its tensors, and the address sanitizer must say so."""
    done = sanitized("address", libraries["address", "bound"].result(), "indexed_pool")
    assert done.returncode == 66, done.stderr[-6000:]
    assert "heap-buffer-overflow" in done.stderr
    assert "depthwise_kernel" in done.stderr
