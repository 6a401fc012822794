# SPDX-License-Identifier: Apache-2.0
"""Timing of several sides of one case, in turns, so that a drift of the machine meets all of them alike.

A turn times a few calls of one side; a round gives every side one turn, beginning with another side each time. A side's time
is the median of its turns. A ratio of two sides is the median over the rounds of the ratio within a round.

CPU: wall clock of a call, the freeing of its result included. Small calls follow an untimed one, so that all sides find their
inputs in the cache. CUDA: events around each call, after the L2 cache was emptied and, for operators, with enough work queued
before it that the host runs ahead: the time is the device's alone. What the host needs to issue the call stands beside it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

_TURN_SECONDS = 2e-3
_WARM_BELOW_SECONDS = 5e-3
_MAX_CALLS_PER_TURN = 20
_FEWEST_ROUNDS = 3
_MOST_AHEAD_SECONDS = 5e-3


@dataclass(frozen=True)
class Side:
    """One of the things compared. ``call(prepare())`` is one run; only ``call`` is timed."""

    name: str
    call: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Effort:
    """When to stop: after ``rounds`` and ``seconds``, or after ``max_seconds`` and three rounds."""

    rounds: int = 9
    seconds: float = 0.8
    max_seconds: float = 6.0

    def enough(self, rounds: int, seconds: float) -> bool:
        return (rounds >= self.rounds and seconds >= self.seconds) or (rounds >= _FEWEST_ROUNDS and seconds >= self.max_seconds)


@dataclass
class Timing:
    """Turns of one side, in seconds per call.

    Attributes:
        turns: time of a call, one value for each round.
        host: CUDA only: what the host needs to issue a call, one value for each round.
        peak_bytes: most memory held at one time beyond the inputs.
    """

    turns: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def milliseconds(self, quantile: float) -> float:
        return 1e3 * float(np.quantile(self.turns, quantile))

    def times_faster_than(self, other: Timing) -> float:
        return statistics.median(theirs / mine for mine, theirs in zip(self.turns, other.turns, strict=True))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Without what C++ code prints there: PyTorch's profiler announces each start and stop."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


class CpuClock:
    def turn(self, side: Side, calls: int, warm: bool) -> tuple[float, float]:
        """Mean seconds of a call, and 0 for the host."""
        total = 0.0
        if warm:
            side.call(side.prepare())
        for _ in range(calls):
            state = side.prepare()
            start = time.perf_counter()
            side.call(state)
            total += time.perf_counter() - start
        return total / calls, 0.0

    def peak_bytes(self, side: Side) -> int:
        """From the allocations that PyTorch's profiler sees: those of all its CPU tensors, of compiled code and ours too."""
        side.prepare()  # sets to its start what an earlier run left
        with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            side.call(side.prepare())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            trace.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        changes = sorted((e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
        return int(np.cumsum([0, *(change for _, _, change in changes)]).max())


class CudaClock:
    """Device time of a call, or, where not ``ahead``, the time from issuing it on an idle device to its end."""

    def __init__(self, ahead: bool) -> None:
        self._ahead = ahead
        self._host: dict[str, float] = {}
        # Several times any L2 cache. It is read, not written: dirty lines would be written back in the timed call.
        self._filler = torch.zeros(256 << 18, device="cuda")
        for _ in range(3):  # the first ones load the kernel
            self._flush_seconds = self._timed(self._filler.sum)[0]

    @staticmethod
    def _timed(call: Callable[[], Any]) -> tuple[float, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        begin = time.perf_counter()
        call()
        host = time.perf_counter() - begin
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, host

    def turn(self, side: Side, calls: int, warm: bool) -> tuple[float, float]:
        """Mean device seconds of a call, and host seconds to issue one."""
        device = host = 0.0
        busy = min(1.5 * self._host.get(side.name, 1.0), _MOST_AHEAD_SECONDS) if self._ahead else 0.0
        for _ in range(calls):
            state = side.prepare()
            torch.cuda.synchronize()
            for _ in range(1 + math.ceil(busy / self._flush_seconds)):
                self._filler.sum()
            if not self._ahead:
                torch.cuda.synchronize()
            times = self._timed(lambda: side.call(state))  # noqa: B023
            device, host = device + times[0], host + times[1]
        self._host[side.name] = host / calls
        return device / calls, host / calls

    def peak_bytes(self, side: Side) -> int:
        side.prepare()  # sets to its start what an earlier run left
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.call(side.prepare())
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


Clock = CpuClock | CudaClock


def make_clock(device: str, ahead: bool = True) -> Clock:
    """The clock of a device; ``ahead``: see :class:`CudaClock`.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "cpu":
        return CpuClock()
    if device != "cuda":
        raise ValueError(f"bench: --device must be cpu or cuda, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError("bench: --device cuda: PyTorch sees no CUDA device")
    return CudaClock(ahead)


def time_sides(sides: Sequence[Side], clock: Clock, effort: Effort) -> dict[str, Timing]:
    """Warm up, measure memory, then time all sides in turns."""
    timings = {side.name: Timing() for side in sides}
    calls: dict[str, int] = {}
    warm: dict[str, bool] = {}
    for side in sides:
        clock.turn(side, 1, warm=False)  # compiles, loads kernels
        timings[side.name].peak_bytes = clock.peak_bytes(side)
        estimate = clock.turn(side, 1, warm=False)[0]
        calls[side.name] = min(max(math.ceil(_TURN_SECONDS / max(estimate, 1e-9)), 1), _MAX_CALLS_PER_TURN)
        warm[side.name] = estimate < _WARM_BELOW_SECONDS
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begin, rounds = time.perf_counter(), 0
        while not effort.enough(rounds, time.perf_counter() - begin):
            first = rounds % len(sides)
            for side in (*sides[first:], *sides[:first]):
                seconds, host = clock.turn(side, calls[side.name], warm[side.name])
                timings[side.name].turns.append(seconds)
                timings[side.name].host.append(host)
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return timings
