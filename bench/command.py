# SPDX-License-Identifier: Apache-2.0
"""The command line of the benchmarks: options, and which cases they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import results
from .models import PRECISIONS, case_row
from .networks import FORWARD, NETWORKS, TRAINING
from .operators import all_cases, default_cases
from .operators import case_row as op_case_row
from .ops import BENCHES
from .ops.case import LAYOUTS, MODES, Case
from .peers import PEERS
from .results import Key, case_key
from .run import Effort

_QUICK_EFFORT = Effort(rounds=5, seconds=0.2, max_seconds=2.0)


def _size(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be NxCxHxW, got {text!r}")
    return tuple(map(int, parts))


def make_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of pyindexnet.")
    commands = parser.add_subparsers(dest="command", required=True)
    timed = argparse.ArgumentParser(add_help=False)
    timed.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    timed.add_argument("--layout", choices=LAYOUTS, nargs="+", help="memory formats (default: see the command)")
    timed.add_argument(
        "--backend",
        choices=("auto", "reference", "cpu", "cuda", "triton"),
        nargs="+",
        help="ours to time; auto: the fused one that users get (default: all fused ones)",
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
    compiled = ops.add_mutually_exclusive_group()
    compiled.add_argument("--no-compile", action="store_true", help="without torch.compile")
    compiled.add_argument("--max-autotune", action="store_true", help="torch.compile in this mode in place of the default one")

    models = commands.add_parser("models", parents=[timed], help="whole networks, forward and training step")
    models.add_argument("--model", choices=tuple(NETWORKS), nargs="+", default=list(NETWORKS))
    models.add_argument("--mode", choices=(FORWARD, TRAINING), nargs="+", default=[FORWARD, TRAINING])
    models.add_argument("--compile", action="store_true", help="torch.compile of the networks as well")
    models.add_argument("--graphs", action="store_true", help="forward on a GPU: the fused networks as CUDA graphs as well")
    models.add_argument("--peer", choices=PEERS, nargs="+", default=[], help="what else to run them with; engines: on a CPU")
    models.add_argument(
        "--dtype", choices=PRECISIONS, nargs="+", default=["float32"], help="amp-: weights in float32, autocast"
    )
    models.add_argument(
        "--size", type=_size, nargs="+", metavar="NxCxHxW", help="these sizes, in place of the cases of a network"
    )

    gpu = commands.add_parser("gpu", help="networks and operators on a GPU, within a time limit")
    gpu.add_argument("--minutes", type=float, default=7.5, help="for all sections together (default: %(default)s)")
    gpu.add_argument("--only", metavar="TEXT", nargs="+", help="sections whose name contains one of these")
    gpu.add_argument("--list", action="store_true", help="print the sections and run nothing")
    gpu.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the result files")
    gpu.add_argument("--commit", help="what to record (default: ask git)")

    documents = commands.add_parser("report", help="docs/benchmarks.md, pictures and the table in README from the result files")
    documents.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the result files")
    documents.add_argument("--root", type=Path, default=results.ROOT, help="folder that holds docs and README.md")
    return parser


def make_effort(arguments: argparse.Namespace) -> Effort:
    """What the options say of rounds and seconds."""
    base = _QUICK_EFFORT if arguments.quick else Effort()
    given = {name: getattr(arguments, name) for name in ("rounds", "seconds", "max_seconds")}
    return Effort(**{name: getattr(base, name) if value is None else value for name, value in given.items()})


def model_cases(arguments: argparse.Namespace, network: str) -> list[tuple[str, tuple[int, ...]]]:
    """(mode, size) of a network."""
    cases = NETWORKS[network].quick if arguments.quick else NETWORKS[network].cases[arguments.device]
    if arguments.size:
        cases = tuple((mode, size) for mode in arguments.mode for size in arguments.size)
    return [case for case in cases if case[0] in arguments.mode]


def op_cases(arguments: argparse.Namespace) -> list[Case]:
    """Of all operators; each takes those of its kinds."""
    found: list[Case] = []
    for dtype in (getattr(torch, name) for name in arguments.dtype):
        if arguments.size:
            found += all_cases(arguments.size, dtype, arguments.device)
        else:
            found += default_cases(arguments.device, dtype, arguments.quick)
    return [case for case in found if case.layout in (arguments.layout or LAYOUTS)]


def planned(arguments: argparse.Namespace) -> list[Key]:
    """The cases that the command ``ops`` or ``models`` times, in its order."""
    if arguments.command == "models":
        rows = [
            case_row(network, mode, precision, layout, size)
            for network in arguments.model
            for precision in arguments.dtype
            for layout in arguments.layout or LAYOUTS
            for mode, size in model_cases(arguments, network)
        ]
    else:
        cases = op_cases(arguments)
        rows = [
            op_case_row(BENCHES[op], case, mode)
            for op in arguments.op
            for case in cases
            if case.maps in BENCHES[op].kinds
            for mode in arguments.mode
        ]
    return [case_key(row) for row in rows]
