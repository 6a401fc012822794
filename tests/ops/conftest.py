# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from pyindexnet import backends


@pytest.fixture(autouse=True)
def kernel_exists(request: pytest.FixtureRequest) -> None:
    """Skip where the operator has no kernel of the backend; ``test_every_operator_has_every_backend`` counts those."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or not {"spec", "variant"} <= parameters.params.keys():
        return
    spec, (backend, _) = parameters.params["spec"], parameters.params["variant"]
    reason = backends.why_not(spec.name, backend)
    if reason is not None and "kernel yet" in reason:
        pytest.skip(reason)
