# SPDX-License-Identifier: Apache-2.0
"""Strong augmentation: every operation, and the probabilities of AF, AFB and AC."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pyindexnet.matting.data.strong import KINDS, OPERATIONS, Strong, apply_strong, draw_operation, make_operation
from tests.matting.data.pictures import blob

SHAPE = (40, 48, 3)


def picture(seed: int) -> np.ndarray:
    return blob(*SHAPE[:2], seed)[0].astype(np.float32) / 255


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    x = picture(1)
    before = x.copy()
    changed = 0
    for seed in range(8):
        operation = make_operation(name, np.random.default_rng(seed), SHAPE)
        y = operation(x)
        assert y.shape == SHAPE
        assert y.dtype == np.float32
        assert y.min() >= 0
        assert y.max() <= 1
        assert (operation(x) == y).all()  # nothing random is left
        assert (make_operation(name, np.random.default_rng(seed), SHAPE)(x) == y).all()
        changed += bool(np.abs(y - x).max() > 1 / 255)
    assert (x == before).all()
    assert changed >= 4  # some draws are mild


@pytest.mark.parametrize("name", [n for n, (kind, _) in OPERATIONS.items() if kind == "linear" and n != "poisson_noise"])
def test_linear_operations_keep_the_composition_equation(name: str) -> None:
    # Without clipping: T(aF + (1 - a)B) = a T(F) + (1 - a) T(B). Poisson noise is linear in its mean alone.
    alpha = np.random.default_rng(2).random((*SHAPE[:2], 1), dtype=np.float32)
    front, back = picture(1), picture(2)
    transform = make_operation(name, np.random.default_rng(5), SHAPE).transform
    difference = transform(alpha * front + (1 - alpha) * back) - (alpha * transform(front) + (1 - alpha) * transform(back))
    assert np.abs(difference).max() <= 16 * torch.finfo(torch.float32).eps


def test_probabilities() -> None:
    strong = Strong(foreground=0.3, both=0.3, composite=0.5, composite_kinds=("region",))
    front, back = picture(1), picture(2)
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for _ in range(400):
        f, b, operation = apply_strong(strong, front, back, rng)
        if operation is not None:
            assert operation.kind == "region"
            assert f is front
            assert b is back
            found["composite"] += 1
        elif f is front and b is back:
            found["none"] += 1
        else:
            found["foreground" if b is back else "both"] += 1
    for kind, share in (("foreground", 0.3), ("both", 0.3), ("composite", 0.2), ("none", 0.2)):
        assert abs(found[kind] / 400 - share) < 4 * np.sqrt(share * (1 - share) / 400), kind


def test_linear_operation_on_the_composite_goes_to_both() -> None:
    strong = Strong(foreground=0, both=0, composite=1)
    front, back = picture(1), picture(2)
    f, b, operation = apply_strong(strong, front, back, np.random.default_rng(3))
    assert operation is None
    rng = np.random.default_rng(3)
    rng.random(2)
    drawn = draw_operation(rng, SHAPE, ("linear",))
    assert (f == drawn(front)).all()
    assert (b == drawn(back)).all()


def test_kinds() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        drawn = {draw_operation(rng, SHAPE, (kind,)).name for _ in range(100)}
        assert drawn == {name for name, (k, _) in OPERATIONS.items() if k == kind}


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^Strong: composite must be in \[0, 1\], got 2"):
        Strong(composite=2)
    with pytest.raises(ValueError, match=r"^Strong: foreground \+ both must be at most 1, got 1.2"):
        Strong(foreground=0.6, both=0.6)
    with pytest.raises(ValueError, match="^Strong: kinds must be one of 'linear', 'nonlinear', 'region', got 'cubic'"):
        Strong(kinds=("cubic",))
    with pytest.raises(ValueError, match="^Strong: composite_kinds must name one of linear, nonlinear, region, got none"):
        Strong(composite_kinds=())
