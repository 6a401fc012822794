# SPDX-License-Identifier: Apache-2.0
"""nvcc compiles every CUDA kernel for every target, and none spills registers."""

from __future__ import annotations

import pytest

from . import resources


@pytest.fixture(scope="module")
def usages() -> list[resources.Usage]:
    if resources.find_nvcc() is None:
        pytest.skip("nvcc was found neither on PATH nor in /usr/local/cuda/bin nor as NVCC")
    return resources.measure()


def kernels_in(text: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_no_spills(usages: list[resources.Usage]) -> None:
    assert {u.target for u in usages} == set(resources.TARGETS)
    assert not [u for u in usages if u.spills or u.stack]


def test_table_lists_the_kernels(usages: list[resources.Usage]) -> None:
    """Register counts differ between compiler versions; which kernels there are does not."""
    assert kernels_in(resources.TABLE.read_text()) == kernels_in(resources.table(usages))


def test_committed_table_has_no_spills() -> None:
    rows = [line.strip("| ").split(" | ") for line in resources.TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows
    assert not [row for row in rows if row[-2:] != ["0", "0"]]
