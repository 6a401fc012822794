# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmarks. It needs torch and numpy alone; the picture of ``report`` needs matplotlib."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from pyindexnet import tune_allocator

from . import report, results
from .gate import WrongResult
from .models import run_models
from .networks import FORWARD, NETWORKS, TRAINING
from .operators import all_cases, default_cases, fused_backends, run_ops
from .ops import BENCHES
from .ops.case import LAYOUTS, MODES, Case
from .peers import PEERS
from .results import Row, number
from .run import Effort, make_clock

_QUICK_EFFORT = Effort(rounds=5, seconds=0.2, max_seconds=2.0)


def _size(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be NxCxHxW, got {text!r}")
    return tuple(map(int, parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of pyindexnet.")
    commands = parser.add_subparsers(dest="command", required=True)
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    timed.add_argument("--layout", choices=LAYOUTS, nargs="+", help="memory formats (default: see the command)")
    timed.add_argument(
        "--backend", choices=("reference", "cpu", "cuda", "triton"), nargs="+", help="ours to time (default: fused)"
    )
    timed.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    timed.add_argument("--allocator", choices=("tuned", "default"), default="tuned", help="CPU memory (default: %(default)s)")
    timed.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    effort = Effort()
    timed.add_argument("--rounds", type=int, help=f"fewest rounds of a case (default: {effort.rounds})")
    timed.add_argument("--seconds", type=float, help=f"shortest time of a case (default: {effort.seconds:g})")
    timed.add_argument("--max-seconds", type=float, help=f"longest, after three rounds (default: {effort.max_seconds:g})")
    timed.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the result files")
    timed.add_argument("--commit", help="what to record (default: ask git)")
    timed.add_argument("--no-save", action="store_true", help="print only")

    ops = commands.add_parser("ops", parents=[timed], help="operators against eager and compiled PyTorch and against a copy")
    ops.add_argument("--op", choices=tuple(BENCHES), nargs="+", default=list(BENCHES))
    ops.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES))
    ops.add_argument("--dtype", choices=("float64", "float32", "float16", "bfloat16"), nargs="+", default=["float32"])
    ops.add_argument(
        "--size", type=_size, nargs="+", metavar="NxCxHxW", help="these sizes, in all layouts, with all kinds of maps"
    )
    ops.add_argument("--no-compile", action="store_true", help="without torch.compile")

    models = commands.add_parser("models", parents=[timed], help="whole networks, forward and training step")
    models.add_argument("--model", choices=tuple(NETWORKS), nargs="+", default=list(NETWORKS))
    models.add_argument("--mode", choices=(FORWARD, TRAINING), nargs="+", default=[FORWARD, TRAINING])
    models.add_argument("--compile", action="store_true", help="torch.compile of the networks as well")
    models.add_argument("--peer", choices=PEERS, nargs="+", default=[], help="forward on a CPU: what else to run them with")
    models.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+", default=["float32"])
    models.add_argument(
        "--size", type=_size, nargs="+", metavar="NxCxHxW", help="these sizes, in place of the cases of a network"
    )

    documents = commands.add_parser("report", help="docs/benchmarks.md, pictures and the table in README from the result files")
    documents.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the result files")
    documents.add_argument("--root", type=Path, default=results.ROOT, help="folder that holds docs and README.md")
    return parser


def _effort(arguments: argparse.Namespace) -> Effort:
    base = _QUICK_EFFORT if arguments.quick else Effort()
    given = {name: getattr(arguments, name) for name in ("rounds", "seconds", "max_seconds")}
    return Effort(**{name: getattr(base, name) if value is None else value for name, value in given.items()})


def _rows(arguments: argparse.Namespace) -> Iterator[list[Row]]:
    if arguments.threads < 1:
        raise ValueError(f"bench: --threads must be at least 1, got {arguments.threads}")
    if arguments.command == "models" and arguments.peer and arguments.device != "cpu":
        raise ValueError(f"bench: --peer needs --device cpu, got {arguments.device}")
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
    effort = _effort(arguments)
    names = arguments.backend or fused_backends(arguments.device)
    where = results.environment(arguments.device, arguments.allocator, arguments.commit)
    if arguments.command == "models":
        names = [name for name in names if name != "reference"]  # it is a side anyway
        layouts = arguments.layout or LAYOUTS
        for name in arguments.model:
            cases = NETWORKS[name].quick if arguments.quick else NETWORKS[name].cases[arguments.device]
            if arguments.size:
                cases = tuple((mode, size) for mode in arguments.mode for size in arguments.size)
            wanted = [case for case in cases if case[0] in arguments.mode]
            more = {"dtypes": [getattr(torch, dtype) for dtype in arguments.dtype], "peers": arguments.peer}
            shared = (arguments.compile, arguments.device, clock, effort, where)
            yield from run_models(name, wanted, layouts, names, *shared, **more)
        return
    found: list[Case] = []
    for dtype in (getattr(torch, name) for name in arguments.dtype):
        if arguments.size:
            found += all_cases(arguments.size, dtype, arguments.device)
        else:
            found += default_cases(arguments.device, dtype, arguments.quick)
    found = [case for case in found if case.layout in (arguments.layout or LAYOUTS)]
    yield from run_ops(arguments.op, found, arguments.mode, names, not arguments.no_compile, clock, effort, where)


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
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "report":
            for path in report.write_report(arguments.results, arguments.root):
                print(path)
            return 0
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
