# SPDX-License-Identifier: Apache-2.0
"""One file per operator, with its :class:`~bench.ops.case.OpBench`. A new operator joins by a file and a line here."""

from . import indexed_pool, indexed_pool_skip, indexed_upsample
from .case import OpBench

BENCHES: dict[str, OpBench] = {
    module.BENCH.name: module.BENCH for module in (indexed_pool, indexed_upsample, indexed_pool_skip)
}
