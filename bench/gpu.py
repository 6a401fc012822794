# SPDX-License-Identifier: Apache-2.0
"""``python -m bench gpu``: what there is to measure on a GPU, the most important first, within a time limit.

Every section is a process of its own: one that takes too long is ended, and a kernel that breaks the CUDA context takes no
other section with it. Rows are written as they are measured. What is missing in the end is listed with the reason, on the
screen and in ``cuda-skipped.txt`` beside the result files.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import results
from .command import make_parser, planned
from .networks import FORWARD, NETWORKS, TRAINING
from .results import SKIPPED, Key

FAILED = "exit status"
#: Seconds that a section needs before it has its first row: Python, CUDA, the gate.
START_UP = 20.0
_QUICK = ("--quick", "--device", "cuda")
_TIMED = ("--device", "cuda", "--layout", "channels_last", "--seconds", "0.4", "--max-seconds", "3")
_GROUPS = {
    "indexed": ("indexed_pool", "indexed_pool_skip", "indexed_upsample"),
    "window": ("grouped_spatial_fusion", "dynamic_upsample", "dynamic_downsample", "non_background_pool"),
    "affinity": ("affinity_upsample", "affinity_downsample", "affinity_map", "affinity_moments"),
}


@dataclass(frozen=True)
class Section:
    """One process.

    Attributes:
        name: of the section.
        arguments: of ``python -m bench``.
        seconds: that it may take at most.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float

    def parsed(self) -> argparse.Namespace:
        return make_parser().parse_args(self.arguments)


def sections() -> list[Section]:
    """The most important first: all networks and operators, then the compiled peer, whose compilation takes minutes.

    Its sections have a case each, with the fused backend that users get. Seconds are guesses until they are measured.
    """
    found = []
    for network in NETWORKS:
        more = ("--backend", "auto", "--graphs", "--dtype", "float32", "amp-float16", "amp-bfloat16")
        found.append(Section(f"network:{network}", ("models", *_TIMED, "--model", network, *more), 90))
    for group, names in _GROUPS.items():
        more = ("--mode", "forward", "forward+backward", "--dtype", "float32", "bfloat16", "--no-compile")
        found.append(Section(f"operators:{group}", ("ops", *_QUICK, "--op", *names, *more), 60))
    for precision in ("amp-float16", "float32", "amp-bfloat16"):
        for mode in (FORWARD, TRAINING):
            for network, entry in NETWORKS.items():
                size = [size for case, size in entry.cases["cuda"] if case == mode and size[-1] <= 512][-1]
                one = ("--model", network, "--mode", mode, "--dtype", precision, "--size", "x".join(map(str, size)))
                more = ("--backend", "auto", "--peer", "max-autotune", *(["--graphs"] if mode == FORWARD else []))
                name = f"max-autotune:{network}:{mode.split()[0]}:{precision}"
                found.append(Section(name, ("models", *_TIMED, *one, *more), 150))
        if precision == "amp-float16":
            for group, names in _GROUPS.items():
                more = ("--mode", "forward", "--layout", "contiguous", "--max-autotune", "--backend", "auto")
                found.append(Section(f"max-autotune:{group}", ("ops", *_QUICK, "--op", *names, *more), 90))
    for group, names in _GROUPS.items():
        more = ("--mode", "forward", "forward+backward", "--dtype", "float16", "--no-compile")
        found.append(Section(f"operators:{group}:float16", ("ops", *_QUICK, "--op", *names, *more), 60))
    return found


def run_section(command: Sequence[str], seconds: float) -> str | None:
    """Run a command, and end it with all its processes after ``seconds``.

    Returns:
        None where it ended well, else how it ended.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=results.ROOT, stderr=errors, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        finally:  # on a keyboard interrupt too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        lines = errors.read().strip().splitlines() or ["no message"]
    if code == 0:
        return None
    print("\n".join(lines[-20:]), file=sys.stderr, flush=True)
    return f"{FAILED} {code}: {lines[-1]}"


def run_sections(
    wanted: Sequence[Section],
    limit: float,
    folder: Path,
    command: Callable[[Section], Sequence[str]],
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Run sections one after the other, ``limit`` seconds together at most.

    Args:
        folder: of the result files.
        command: what runs a section.
    Returns:
        A line for each case that was not measured.
    """
    begin, missing = clock(), []
    for section in wanted:
        arguments = section.parsed()
        path = folder / f"{arguments.device}-{arguments.command}.csv"
        rows_before = len(results.read(path)) if path.exists() else 0
        left = limit - (clock() - begin)
        if left < START_UP:
            reason: str | None = f"not started, {max(left, 0):.0f} s were left"
        else:
            print(f"--- {section.name}: {min(section.seconds, left):.0f} s at most", flush=True)
            reason = run_section(command(section), min(section.seconds, left))
        rows = results.read(path)[rows_before:] if path.exists() else []
        measured: set[Key] = {results.case_key(row) for row in rows}
        for key in planned(arguments):
            if key not in measured:
                missing.append(f"{section.name}: {', '.join(key)}: {reason or 'ended without it'}")
        if reason is not None:
            print(f"--- {section.name}: {reason}", flush=True)
    return missing


def main(arguments: argparse.Namespace) -> int:
    """``python -m bench gpu``; 0, also where time ran out, 1 where a section failed.

    Raises:
        ValueError: no section of that name; a limit that is not positive; no CUDA device.
    """
    wanted = [s for s in sections() if not arguments.only or any(text in s.name for text in arguments.only)]
    if not wanted:
        raise ValueError(f"bench: --only must be part of a section's name, got {' '.join(arguments.only)}")
    if arguments.list:
        for section in wanted:
            cases = planned(section.parsed())
            print(f"{section.name}: {len(cases)} cases, {section.seconds:.0f} s at most\n    {shlex.join(section.arguments)}")
        return 0
    if arguments.minutes <= 0:
        raise ValueError(f"bench: --minutes must be more than 0, got {arguments.minutes:g}")
    if not torch.cuda.is_available():
        raise ValueError("bench: gpu: PyTorch sees no CUDA device")
    commit = arguments.commit or results.current_commit()
    shared = ("--results", str(arguments.results.resolve()), "--commit", commit)
    missing = run_sections(
        wanted,
        60 * arguments.minutes,
        arguments.results,
        lambda section: (sys.executable, "-m", "bench", *section.arguments, *shared),
    )
    text = "\n".join(missing) or "nothing"
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / SKIPPED).write_text(text + "\n")
    print(f"\nNot measured ({len(missing)}):\n{text}")
    return int(any(FAILED in line for line in missing))
