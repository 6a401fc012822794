# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pyindexnet import backends


@pytest.fixture(autouse=True)
def kernel_exists(request: pytest.FixtureRequest) -> None:
    """Skip where the operator of the test has no kernel of the backend yet."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if "variant" not in parameters:
        return
    window = "test_window.py" in str(request.node.path)
    op = "dynamic_upsample" if window else parameters["spec"].name if "spec" in parameters else None
    reason = backends.why_not(op, parameters["variant"][0]) if op else None
    if reason is not None and reason.endswith("kernel yet"):
        pytest.skip(reason)
