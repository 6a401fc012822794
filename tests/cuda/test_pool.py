# SPDX-License-Identifier: Apache-2.0
"""The threads of the host emulation: each runs every block of its launch once, also where the pool has just grown."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .emulation import ROOT, compiler

PROGRAM = """
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include "cuda/emulation.h"

int main() {
  static std::atomic<unsigned> runs;
  auto& pool = pyindexnet::cuda::emulation::Pool::instance();
  pool.run(dim3(1), dim3(1), 0, [] {});
  pool.run(dim3(0), dim3(64), 0, [] { ++runs; });  // 63 threads join and have time to look for work; there is none
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  pool.run(dim3(2), dim3(64), 0, [] { ++runs; });
  std::printf("%u", runs.load());
  std::fflush(stdout);
  std::_Exit(0);  // its threads wait for ever
}
"""


def test_a_growing_pool_runs_every_thread_once(tmp_path: Path) -> None:
    source, program = tmp_path / "pool.cpp", tmp_path / "pool"
    source.write_text(PROGRAM)
    command = [compiler(), "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program), "-pthread"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "128"), done.stderr
