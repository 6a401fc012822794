# SPDX-License-Identifier: Apache-2.0
"""``make test-gpu`` names its tests: no test of the GPU is left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_make_runs_all_tests_of_the_gpu() -> None:
    listed = re.search(r"^GPU_TESTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    named = [ROOT / path for path in listed[1].split()]
    assert all(path.exists() for path in named)
    marked = [p for p in ROOT.glob("tests/**/test_*.py") if re.search(r"mark\.gpu|\bvariants\(\)", p.read_text())]
    assert len(marked) > 8
    assert not [p for p in marked if p != Path(__file__) and not any(p == n or n in p.parents for n in named)]
