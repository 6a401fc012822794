# SPDX-License-Identifier: Apache-2.0
"""No call leaves anything on the heap. A few bytes are enough to harm: they keep glibc from reusing the memory around them."""

from __future__ import annotations

import ctypes
import gc
import sys

import pytest
import torch

from pyindexnet.ops._common import TRITON_INTERPRETED
from pyindexnet.testing import OpSpec, make_tensors

from .variants import ALL_SPECS, spec_id, variants

_CALLS = 400


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def _mallinfo2() -> ctypes._CFuncPtr:
    function = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform.startswith("linux") else None
    if function is None:
        pytest.skip("needs mallinfo2 of glibc 2.33")
    function.restype = _MallInfo
    return function


@pytest.mark.skipif(TRITON_INTERPRETED, reason="hundreds of calls are too many for Triton's interpreter")
@pytest.mark.parametrize("where", variants())
@pytest.mark.parametrize("spec", ALL_SPECS, ids=spec_id)
def test_calls_leave_nothing_behind(spec: OpSpec, where: tuple[str, str]) -> None:
    backend, device = where
    mallinfo = _mallinfo2()
    sample = spec.samples[0]
    tensors = [t.requires_grad_() for t in make_tensors(spec, sample, torch.float32, device)]

    def call() -> None:
        outputs = spec.function(*tensors, backend=backend, **sample.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(outputs, tensors, [torch.ones_like(y) for y in outputs])

    def used() -> int:
        gc.collect()
        return int(mallinfo().uordblks)

    for _ in range(_CALLS):  # caches fill
        call()
    before = used()
    for _ in range(_CALLS):
        call()
    # The smallest block of the heap has 32 bytes; half of one leaves room for a cache that grows once.
    assert (used() - before) / _CALLS < 16
