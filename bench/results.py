# SPDX-License-Identifier: Apache-2.0
"""Result files: one row for each side of each case, appended, never edited."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .run import Timing

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "results"
COLUMNS = (
    *("op", "backend", "mode", "dtype", "layout", "shape"),
    *("p20_ms", "p50_ms", "p80_ms", "host_ms", "rounds", "peak_mib", "gb_s", "pct_copy", "speedup_eager", "speedup_compile"),
    *("torch", "triton", "cuda", "device_name", "threads", "allocator", "commit", "date"),
)
#: What names a case, all sides of which are timed in turns.
CASE = ("op", "mode", "dtype", "layout", "shape")
#: Rows of one series: a later row replaces an earlier one in reports. With ``commit`` it is the key of a row.
SERIES = (*COLUMNS[:6], "device_name", "threads", "allocator")

#: Sides that are ``torch.compile`` of the published formula: its default mode, and the one that tries kernels out.
COMPILE, MAX_AUTOTUNE = "compile", "max-autotune"

#: Of ``python -m bench gpu``, beside the result files.
SKIPPED = "cuda-skipped.txt"

#: The allocator column of rows measured on a GPU.
GPU_ALLOCATOR = "torch"

Row = dict[str, str]
Key = tuple[str, ...]


def case_key(row: Row) -> Key:
    """What is the same for all sides of a case."""
    return tuple(row[name] for name in CASE)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    model = names.get("model name", platform.machine())
    return f"{model} (family {names['cpu family']} model {names['model']})" if "cpu family" in names else model


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def current_commit() -> str:
    """Short hash of the checked-out commit, ``-dirty`` where code differs from it; ``unknown`` without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "bench/*.py", "csrc", "kernels", "pyindexnet", "setup.py"
        )
        return git("rev-parse", "--short=9", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device: str, allocator: str, commit: str | None) -> Row:
    """The columns that describe where rows come from."""
    on_gpu = device == "cuda"
    return {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": str(torch.version.cuda or "none"),
        "device_name": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "allocator": GPU_ALLOCATOR if on_gpu else allocator,
        "commit": commit or current_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }


def make_row(case: Row, name: str, timings: dict[str, Timing], bytes_moved: int | None, where: Row) -> Row:
    """The row of side ``name``.

    Args:
        case: op, mode, dtype, layout, shape. bytes_moved: None where no such count is meant. where: :func:`environment`.
    """
    timing = timings[name]

    def ratio(other: str, scale: float = 1.0) -> str:
        return f"{scale * timing.times_faster_than(timings[other]):.3g}" if other in timings else ""

    median = timing.milliseconds(0.5)
    return {
        **case,
        "backend": name,
        "p20_ms": f"{timing.milliseconds(0.2):.5g}",
        "p50_ms": f"{median:.5g}",
        "p80_ms": f"{timing.milliseconds(0.8):.5g}",
        "host_ms": f"{1e3 * sorted(timing.host)[len(timing.host) // 2]:.4g}" if any(timing.host) else "",
        "rounds": str(len(timing.turns)),
        "peak_mib": f"{timing.peak_bytes / 2**20:.4g}",
        "gb_s": "" if bytes_moved is None else f"{bytes_moved / median / 1e6:.4g}",
        "pct_copy": ratio("copy", 100.0),
        "speedup_eager": ratio("eager"),
        "speedup_compile": ratio(COMPILE) or ratio(MAX_AUTOTUNE),
        **where,
    }


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a result file, which is created with its header where it does not exist.

    Raises:
        ValueError: the file has other columns.
    """
    if path.exists():
        with path.open(newline="") as file:
            header = tuple(next(csv.reader(file), ()))
        if header != COLUMNS:
            raise ValueError(f"bench: columns of {path} must be {','.join(COLUMNS)}, got {','.join(header)}")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(COLUMNS) + "\n")
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


def read(path: Path) -> list[Row]:
    """All rows of a result file, in the order in which they were measured."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each series, in the order in which the series first appear."""
    series = {}
    for row in rows:
        series[tuple(row[name] for name in SERIES)] = row
    return list(series.values())


def number(text: str) -> str:
    """For people: three significant digits without an exponent; a dash where there is nothing."""
    if not text:
        return "–"
    value = float(text)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def groups(rows: Iterable[Row], *names: str) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Rows by the values of some columns, in the order of first appearance."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def elements(row: Row) -> int:
    """Of the shape of a case."""
    size = 1
    for part in row["shape"].split()[0].split("x"):
        size *= int(part)
    return size


def where(row: Row) -> str:
    """Device, threads and allocator, as people read it."""
    if row["allocator"] == GPU_ALLOCATOR:
        return row["device_name"]
    return f"{row['device_name']}, {row['threads']} threads, {row['allocator']} allocator"
