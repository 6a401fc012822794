# SPDX-License-Identifier: Apache-2.0
"""Golden cases: arrays and weights measured on the published implementations."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from tests.shared_data import shared_path


@dataclass(frozen=True)
class GoldenCase:
    """One case: ``info`` is its JSON, ``arrays`` its npz."""

    info: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name].copy())

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Arrays named ``prefix/key``, by key."""
        prefix += "/"
        return {n[len(prefix) :]: self.tensor(n) for n in self.arrays if n.startswith(prefix)}

    def tolerance(self, which: str) -> float:
        """Ten times the distance of the published float32 output from its own float64 run."""
        return 10 * self.info["float32_vs_float64"][which]["max_abs"]

    def relative_tolerance(self, which: str) -> float:
        """The same, relative to the standard deviation of that output."""
        return self.tolerance(which) / self.info["float32_vs_float64"][which]["output_std"]


@cache
def load_case(group: str, name: str) -> GoldenCase:
    """Read ``group/name``."""
    info = json.loads(shared_path("golden", group, f"{name}.json").read_text())
    with np.load(shared_path("golden", group, f"{name}.npz")) as arrays:
        return GoldenCase(info, dict(arrays))


def formula_weight(formula: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that the ``formula`` entry of a case defines for a state-dict key, float32."""
    gain = formula["gain"]
    for part, value in formula["gains_by_substring"].items():
        if part in key:
            gain = value
    rng = np.random.RandomState(zlib.crc32(f"{formula['seed']}|{key}".encode()))
    weight = rng.standard_normal(shape) * gain * np.sqrt(2 / np.prod(shape[1:]))
    return weight.astype(np.float32).astype(np.float16).astype(np.float32)


def published_state_dict(group: str, name: str) -> dict[str, torch.Tensor]:
    """State dict of a full network in the published keys: kernels by formula, each checked; the rest as stored."""
    case = load_case(group, name)
    keys = json.loads(shared_path("golden", group, f"{name}.keys.json").read_text())
    if isinstance(keys, dict):  # with the constructor's arguments beside it
        keys = keys["state_dict"]
    crc = case.info["kernel_crc32_of_float32_bytes"]
    stored = case.tensors("weight")
    state = {}
    for key, shape, _ in keys:
        if len(shape) >= 2:
            weight = formula_weight(case.info["formula"], key, tuple(shape))
            if zlib.crc32(weight.tobytes()) != crc[key]:
                raise AssertionError(f"{name}: the formula gives another {key} than the golden run used")
            state[key] = torch.from_numpy(weight)
        elif key.endswith("num_batches_tracked"):
            state[key] = stored.get(key, torch.tensor(0))
        else:
            state[key] = stored[key]
    return state
