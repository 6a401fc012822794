# SPDX-License-Identifier: Apache-2.0
"""The timing of sides in turns, and the memory they hold."""

from __future__ import annotations

import time

import pytest
import torch

from bench.operators import copy_side, make_side
from bench.run import CpuClock, Effort, Side, Timing, make_clock, time_sides


class Recorder:
    """A clock that notes whose turn it is; each turn of a side takes the next of its preset times."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = {name: iter(values) for name, values in seconds.items()}
        self.order: list[tuple[str, int]] = []

    def turn(self, side: Side, calls: int, warm: bool) -> tuple[float, float]:
        self.order.append((side.name, calls))
        return next(self.seconds[side.name]), 0.0

    def peak_bytes(self, side: Side) -> int:
        return len(side.name)


def _idle(name: str) -> Side:
    return Side(name, lambda _: None)


def test_rounds_begin_with_another_side_each_time() -> None:
    clock = Recorder({"a": [9.0, 1.0, 1.0, 2.0, 4.0], "bb": [9.0, 1e-4, 2.0, 2.0, 12.0]})
    timings = time_sides([_idle("a"), _idle("bb")], clock, Effort(rounds=3, seconds=0.0, max_seconds=0.0))
    assert [name for name, _ in clock.order] == ["a", "a", "bb", "bb", *("a", "bb"), *("bb", "a"), *("a", "bb")]
    assert timings["a"].turns == [1.0, 2.0, 4.0]  # without the two warm-ups
    assert timings["bb"].turns == [2.0, 2.0, 12.0]
    assert dict(clock.order) == {"a": 1, "bb": 20}  # 2 ms of short calls in a turn
    assert timings["bb"].peak_bytes == 2


def test_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    a, b = Timing([1.0, 2.0, 4.0]), Timing([2.0, 2.0, 12.0])
    assert a.times_faster_than(b) == 2.0  # the ratio of the medians is 1
    assert b.times_faster_than(a) == 0.5
    assert a.milliseconds(0.5) == 2000


def test_effort() -> None:
    effort = Effort(rounds=9, seconds=1.0, max_seconds=10.0)
    assert not effort.enough(8, 5.0)
    assert not effort.enough(9, 0.5)
    assert effort.enough(9, 1.0)
    assert not effort.enough(2, 99.0)
    assert effort.enough(3, 10.0)


def test_only_the_call_is_timed() -> None:
    seconds, host = CpuClock().turn(Side("s", lambda _: time.sleep(0.002), lambda: time.sleep(0.05)), 2, warm=True)
    assert 0.002 <= seconds < 0.05
    assert host == 0


def test_peak_memory_on_a_cpu() -> None:
    x = torch.zeros(1 << 18)
    clock = CpuClock()
    assert clock.peak_bytes(Side("one", lambda _: x.clone())) == 1 << 20
    assert clock.peak_bytes(Side("two", lambda _: x.clone().clone())) == 2 << 20
    assert clock.peak_bytes(Side("one after the other", lambda _: (x.clone().sum(), x.clone())[0])) < 3 << 20
    assert clock.peak_bytes(Side("prepared", lambda state: state.clone(), lambda: x.clone())) == 2 << 20
    assert clock.peak_bytes(Side("none", lambda _: x.view(-1))) == 0


def test_copy_moves_as_many_bytes() -> None:
    side = copy_side(4096, torch.float16, "cpu")
    copied = side.call(side.prepare())
    assert 2 * copied.nbytes == 4096
    assert copied.dtype == torch.float16


def test_sides_run_their_mode() -> None:
    x, y = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    inputs, cotangents = (x, y), (torch.tensor([1.0, 10.0]),)
    seen: list[bool] = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(a.requires_grad)
        return a * b

    forward = make_side("s", product, inputs, cotangents, "forward")
    assert forward.call(forward.prepare()).tolist() == [10, 21]
    for mode in ("backward", "forward+backward"):
        side = make_side("s", product, inputs, cotangents, mode)
        for _ in range(2):
            grads = side.call(side.prepare())
            assert [g.tolist() for g in grads] == [[5, 70], [2, 30]]
    assert seen == [False, True, True, True, True]


def test_no_cuda_device_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^bench: --device cuda: PyTorch sees no CUDA device$"):
        make_clock("cuda")


@pytest.mark.gpu
def test_cuda_clock() -> None:
    clock = make_clock("cuda")
    x = torch.zeros(1 << 24, device="cuda")
    side = Side("copy", lambda _: x.clone())
    assert clock.peak_bytes(side) == x.nbytes
    timing = time_sides([side], clock, Effort(rounds=3, seconds=0.0, max_seconds=1.0))["copy"]
    assert 1e-6 < min(timing.turns) < 1e-2
    assert min(timing.host) > 0
