# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from . import emulation


@pytest.fixture(scope="session")
def emulated() -> str:
    """Suffix of the ops whose CUDA kernels run on host threads."""
    emulation.load()
    return emulation.SUFFIX
