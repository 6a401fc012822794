# SPDX-License-Identifier: Apache-2.0
"""What decides whether a backend is right: samples, the float64 reference, the tolerance rule. Tests and commands share it."""

from .affinity_specs import AFFINITY_SPECS
from .parity import Measurement, measure, tolerance
from .specs import SPECS, OpSpec, Sample
from .tensors import LAYOUTS, make_tensors
from .window_specs import WINDOW_SPECS

SPECS.update(WINDOW_SPECS)
SPECS.update(AFFINITY_SPECS)

__all__ = ["LAYOUTS", "SPECS", "Measurement", "OpSpec", "Sample", "make_tensors", "measure", "tolerance"]
