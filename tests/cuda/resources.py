# SPDX-License-Identifier: Apache-2.0
"""Registers, stack and spills of every CUDA kernel on every target: ``python -m tests.cuda.resources`` writes the table.

Needs nvcc, no GPU. The table is docs/cuda_resources.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths

from .emulation import ROOT, TORCH_FLAGS, sources

TARGETS = ("80", "90", "100")
TABLE = ROOT / "docs/cuda_resources.md"
# Template arguments that c++filt spells by number, see csrc/cuda/index_cell.cuh.
_OPS = {
    33: "pool",
    22: "pool backward",
    18: "upsample",
    41: "upsample backward",
    49: "pool_skip",
    23: "pool_skip backward",
}
_ALONG = ("row", "channel", "any")
_DTYPES = {"float": "float32", "double": "float64", "c10::Half": "float16", "c10::BFloat16": "bfloat16"}
_ENTRY = re.compile(
    r"Compiling entry function '(?P<mangled>\w+)' for 'sm_(?P<target>\d+)'\n.*\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


@dataclass(frozen=True, order=True)
class Usage:
    """Resources of one kernel on one target."""

    kernel: str
    target: str
    registers: int
    stack: int
    spills: int


def find_nvcc() -> str | None:
    return os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _readable(demangled: str) -> str:
    """``depthwise float32 r2 pool, 2 along row`` from a demangled kernel name."""
    match = re.search(
        r"(\w+)_kernel<pyindexnet::cuda::OpOf<(\d+)>, ([\w:]+), (\d), (\d), \(pyindexnet::cuda::Along\)(\d)>", demangled
    )
    if match is None:
        match = re.search(
            r"(window|affinity)_(\w+)_kernel<([\w:]+)(?:, (?:\(int\))?(\d))?(?:, (?:\(bool\))?(true|false|[01]))?>", demangled
        )
        if match:
            family, kernel, dtype, scale, of_rank = match.groups()
            family = "affinity" if of_rank in ("true", "1") else family
            return f"{family}{f', scale {scale}' if scale else ''}, {_DTYPES[dtype]}: {kernel}"
        match = re.search(r"(pool|encoding)_(\w+)_kernel<([\w:]+)(?:, \(bool\)(\d))?>", demangled)
        family = {"pool": "non_background_pool", "encoding": "encoding"}
        of_moments = " of moments" if match and match[4] == "1" else ""
        return f"{family[match[1]]}, {_DTYPES[match[3]]}: {match[2]}{of_moments}" if match else demangled
    kernel, op, dtype, ratio, size, along = match.groups()
    return f"{_OPS[int(op)]}, ratio {ratio}, {_DTYPES[dtype]}: {kernel}, {size} along {_ALONG[int(along)]}"


def _parse(report: str) -> list[Usage]:
    """Every kernel in what ptxas wrote."""
    found = list(_ENTRY.finditer(report))
    if len(found) != report.count("Compiling entry function"):
        raise RuntimeError("the report of ptxas has an unknown form:\n" + report[:2000])
    names = subprocess.run(
        ["c++filt"], input="\n".join(m["mangled"] for m in found), capture_output=True, text=True, check=True
    )
    return [
        Usage(_readable(name), m["target"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for name, m in zip(names.stdout.splitlines(), found, strict=True)
    ]


def _compile(source: Path, target: str) -> list[Usage]:
    includes = [f for path in include_paths() for f in ("-isystem", path)]
    with tempfile.TemporaryDirectory() as folder:
        command = [find_nvcc(), "-std=c++20", "-O3", "-DUSE_CUDA", *TORCH_FLAGS, *includes, "-Xptxas", "-v", "-cubin"]
        command += ["--expt-relaxed-constexpr", f"-arch=sm_{target}", str(source), "-o", f"{folder}/out.cubin"]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc failed on {source.name} for sm_{target}:\n{done.stderr[-4000:]}")
    return _parse(done.stderr)


def _of_build() -> list[Usage] | None:
    """What setup.py kept when it built the extension; None where that is missing or older than the sources."""
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
    for build in (ROOT / "build").glob("ninja-*/csrc/cuda"):
        reports = [build / f"{source.name}.o.report" for source in sources()]
        if all(report.exists() and report.stat().st_mtime > newest for report in reports):
            usages = sorted(usage for report in reports for usage in _parse(report.read_text()))
            if {usage.target for usage in usages} == set(TARGETS):
                return usages
    return None


def measure() -> list[Usage]:
    """All kernels of csrc/cuda on all targets: from the build where it is up to date, else compiled now (minutes)."""
    usages = _of_build()
    if usages is not None:
        return usages
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_compile, source, target) for source in sources() for target in TARGETS]
        return sorted(usage for job in jobs for usage in job.result())


def table(usages: Iterable[Usage]) -> str:
    """The Markdown table: a line per kernel, registers per target."""
    by_kernel: dict[str, dict[str, Usage]] = {}
    for usage in usages:
        by_kernel.setdefault(usage.kernel, {})[usage.target] = usage
    lines = [
        "# Registers and spills of the CUDA kernels",
        "",
        "Written by `python -m tests.cuda.resources` from the report of ptxas (`-Xptxas -v`, flags of `setup.py`);",
        "`tests/cuda/test_resources.py` fails where it lacks a kernel or one spills. Blocks have 256 threads, and a",
        "multiprocessor has 65,536 registers: 32 registers let 8 blocks run at once, 64 let 4, 128 let 2.",
        "",
        "| kernel | " + " | ".join(f"sm_{target}" for target in TARGETS) + " | stack | spills |",
        "|---|" + "---:|" * (len(TARGETS) + 2),
    ]
    for kernel, row in by_kernel.items():
        registers = " | ".join(str(row[target].registers) for target in TARGETS)
        stack, spills = max(u.stack for u in row.values()), max(u.spills for u in row.values())
        lines.append(f"| {kernel} | {registers} | {stack} | {spills} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if find_nvcc() is None:
        sys.exit("nvcc was found neither on PATH nor in /usr/local/cuda/bin nor as NVCC")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(measure()))
