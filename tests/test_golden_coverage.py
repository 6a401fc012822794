# SPDX-License-Identifier: Apache-2.0
"""No golden case of the dynamic-kernel operators lies unread: the modules of tests export the names of those they load."""

from __future__ import annotations

import pytest

from tests.models import test_a2u_blocks, test_a2u_matting
from tests.nn import test_affinity, test_carafe, test_inplace_abn
from tests.ops import test_window
from tests.shared_data import shared_path

OPERATORS = [(group, name) for group, name, *_ in test_window.PUBLISHED]
MODULES = (test_affinity, test_inplace_abn, test_a2u_blocks)
LOADED: dict[str, set[str]] = {
    "a2u_ops": {name for group, name in OPERATORS if group == "a2u_ops"},
    "carafe": {name for group, name in OPERATORS if group == "carafe"} | {*test_carafe.GOLDENS},
    "a2u_module": {name for module in MODULES for name in module.GOLDENS},
    test_a2u_matting.GROUP: {test_a2u_matting.CASE},
}


@pytest.mark.parametrize("group", LOADED)
def test_every_case_is_loaded(group: str) -> None:
    assert {path.stem for path in shared_path("golden", group).glob("*.npz")} == LOADED[group]
