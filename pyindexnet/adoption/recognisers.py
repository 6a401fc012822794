# SPDX-License-Identifier: Apache-2.0
"""The table of what is recognised.

A recogniser looks at a module's structure and returns None, or a function that decides with a probe: it returns the fused form,
as a function of the module, and the largest relative difference, or raises ProbeError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from pyindexnet.adoption.fused import FusedModule
from pyindexnet.adoption.probe import Inputs, Probe, ProbeError

Build = Callable[[nn.Module], FusedModule]
Decision = tuple[Build, float]
Decide = Callable[[Probe], Decision]
Recogniser = Callable[[nn.Module], Decide | None]

#: Kind, as the report names it -> recogniser; tried in this order.
RECOGNISERS: dict[str, Recogniser] = {}


def register_recogniser(kind: str) -> Callable[[Recogniser], Recogniser]:
    """Register the decorated recogniser."""

    def register(recogniser: Recogniser) -> Recogniser:
        if kind in RECOGNISERS:
            raise ValueError(f"register_recogniser: kind must be new, got {kind!r}")
        RECOGNISERS[kind] = recogniser
        return recogniser

    return register


def first_equal(probe: Probe, builds: Iterable[Build], cases: Sequence[Inputs]) -> Decision:
    """The first of several possible forms that is the module's function.

    Raises:
        ProbeError: none is; the reason is that of the nearest.
    """
    failures: list[ProbeError] = []
    for build in builds:
        try:
            return build, probe.verify(build, cases)
        except ProbeError as failure:
            failures.append(failure)
    raise min(failures, key=lambda f: f.distance, default=ProbeError("no form of this kind has its shapes"))
