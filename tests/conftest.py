# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures for all tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from zlib import crc32

import pytest
import torch

from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import OpSpec


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run tests marked slow")


def _thin_for_interpreter(items: list[pytest.Item]) -> None:
    """Of each operator (where a test has several) and backend in a test marked ``interpreted(one_in)``, one case in so many
    stays (0: none does); the others are slow.

    Which ones their names decide, so that no order of options keeps some of them out.
    """
    groups = defaultdict(list)
    for item in items:
        if (mark := item.get_closest_marker("interpreted")) and isinstance(item, pytest.Function):
            spec: OpSpec | None = item.callspec.params.get("spec")
            groups[item.originalname, spec and spec.name, item.callspec.params["variant"], mark.kwargs["one_in"]].append(item)
    for (*_, one_in), cases in groups.items():
        cases.sort(key=lambda item: crc32(item.name.encode()))
        for item in cases[-(-len(cases) // one_in) if one_in else 0 :]:
            item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if TRITON_INTERPRETED:
        _thin_for_interpreter(items)
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="PyTorch sees no CUDA device"))
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors hold NaN, in C++ too, so that an element that a kernel does not write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
