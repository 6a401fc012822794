# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmarks. It needs torch and numpy alone; the picture of ``report`` needs matplotlib."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

import torch

from pyindexnet import backends, tune_allocator

from . import gpu, report, results
from .command import make_effort, make_parser, model_cases, op_cases
from .gate import WrongResult
from .models import Sides, run_models
from .operators import fused_backends, run_ops
from .ops.case import LAYOUTS
from .peers import ENGINES
from .results import COMPILE, MAX_AUTOTUNE, Row, number
from .run import make_clock


def _rows(arguments: argparse.Namespace) -> Iterator[list[Row]]:
    if arguments.threads < 1:
        raise ValueError(f"bench: --threads must be at least 1, got {arguments.threads}")
    engines = [name for name in getattr(arguments, "peer", ()) if name in ENGINES]
    if engines and arguments.device != "cpu":
        raise ValueError(f"bench: --peer {engines[0]} needs --device cpu, got {arguments.device}")
    if getattr(arguments, "graphs", False) and arguments.device != "cuda":
        raise ValueError(f"bench: --graphs needs --device cuda, got {arguments.device}")
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu":
        if arguments.allocator == "tuned" and not tune_allocator():
            raise ValueError("bench: --allocator tuned needs glibc; use --allocator default")
        if arguments.allocator == "default" and "GLIBC_TUNABLES" in os.environ:
            raise ValueError("bench: --allocator default: GLIBC_TUNABLES must not be set")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"note: load average {busy:.1f} before the start; other programs disturb the timings", file=sys.stderr)
    clock = make_clock(arguments.device, ahead=arguments.command == "ops")
    effort, names = make_effort(arguments), _backends(arguments)
    where = results.environment(arguments.device, arguments.allocator, arguments.commit)
    if arguments.command == "models":
        names = [name for name in names if name != "reference"]  # it is a side anyway
        sides = Sides(names, arguments.compile, arguments.graphs, arguments.peer)
        for name in arguments.model:
            cases, layouts = model_cases(arguments, name), arguments.layout or LAYOUTS
            yield from run_models(name, cases, layouts, arguments.dtype, sides, arguments.device, clock, effort, where)
        return
    compiled = None if arguments.no_compile else MAX_AUTOTUNE if arguments.max_autotune else COMPILE
    samples = 1 if arguments.quick else None
    cases = op_cases(arguments)
    yield from run_ops(arguments.op, cases, arguments.mode, names, compiled, clock, effort, where, samples)


def _backends(arguments: argparse.Namespace) -> list[str]:
    """Ours that are timed."""
    if arguments.backend and "auto" not in arguments.backend:
        return list(arguments.backend)
    fused = fused_backends(arguments.device)
    return [name for name in backends.ORDER if name in fused][:1] if arguments.backend else fused


def _line(row: Row) -> str:
    case = f"{row['op']:17} {row['mode']:16} {row['dtype']:8} {row['layout']:13} {row['shape']:20} {row['backend']:11}"
    found = (
        ("p50_ms", "ms"),
        ("gb_s", "GB/s"),
        ("pct_copy", "% copy"),
        ("speedup_eager", "x eager"),
        ("speedup_compile", "x compile"),
    )
    return case + "".join(f" {number(row[name]):>6} {unit}" for name, unit in found)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0, or 2 after one line on stderr."""
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.command == "report":
            for path in report.write_report(arguments.results, arguments.root):
                print(path)
            return 0
        if arguments.command == "gpu":
            return gpu.main(arguments)
        path = arguments.results / f"{arguments.device}-{arguments.command}.csv"
        everything: list[Row] = []
        for rows in _rows(arguments):
            for row in rows:
                print(_line(row), flush=True)
            everything += rows
            if not arguments.no_save:
                results.append(path, rows)
        print("\n" + report.case_table(everything))
    except (ValueError, WrongResult) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
