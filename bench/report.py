# SPDX-License-Identifier: Apache-2.0
"""``python -m bench report``: docs/benchmarks.md and .html, a picture for each device, a table in README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .ops.affinity import MATERIALISED
from .ops.dynamic_upsample import COMPILE_LOW
from .report_page import page
from .results import COMPILE, MAX_AUTOTUNE, SKIPPED, Row, elements, groups, latest, number, read, where

PEERS = ("copy", "eager", COMPILE, COMPILE_LOW, MAX_AUTOTUNE, MATERIALISED, "reference")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_MODES = ("forward", "backward", "forward+backward")

EXPLANATION = """# Benchmarks

Made by `python -m bench report` from `bench/results`; the numbers are measured by `python -m bench ops` and
`python -m bench models`.

- **eager**: the published formula in eager PyTorch, as in `bench/ops`; **compile**: `torch.compile` of it, static shapes;
  **max-autotune**: the same in that mode, for operators without its CUDA graphs, which would copy the inputs. `×compile` is
  against the one that was timed. **compile_low**: `torch.compile` of a better formula of `dynamic_upsample`, which is not
  published: it works at the size of the input and repeats no window.
- All sides of a line are timed in turns in one run. A time is the median of the turns, a ratio the median over the rounds of
  the ratio within one round. `×eager` and `×compile` say how many times faster than that peer a side is; below 1 it is slower.
- GB/s: bytes that must move (forward: inputs read once, outputs written once; backward: output gradients and inputs read,
  input gradients written) over the time. `% copy`: against `clone()` of as many bytes in the same rounds. Above 100 % an
  operator beats the copy: half of a copy's bytes are writes, which cost more than reads.
- MiB: most memory held during the call beyond the inputs; in backward, what the forward saved is part of it.
- Shapes: N x C x H x W of the high-resolution grid, ratio 2, the published normalisations, depthwise index maps unless
  `holistic` is named. In channels_last, each side gets index maps in the memory order that suits it, see `bench/ops/case.py`.
- CPU times are wall clock. CUDA times of operators are device time with a cold L2 cache; `*` marks sides where the host needs
  longer to issue the call than the device to run it, so that eager code does not see that time unless the GPU has other
  work queued. CUDA times of models include what the host needs.
- Models: `+fuse` is `fuse()`, `+compile` `torch.compile`, `+graph` a CUDA graph, whose memory is held from its capture on and
  not in the column MiB. `amp-`: weights in float32 under autocast, in training with loss scaling for float16; fused networks
  have their weights converted instead. Convolutions of float32 use TF32 on a GPU, PyTorch's default, on all sides.
- Nothing is timed unless every side passes the tolerance rule of the tests, on small samples (one of each operator with
  `--quick`) and on the timed tensors. Networks: within ten times the noise of the reference network in the same arithmetic,
  forward; the training step of a compiled network is not checked.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; columns after the first ``left`` are aligned to the right."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def case_table(rows: Iterable[Row]) -> str:
    """All sides of the given rows, one line each."""
    header = ("op", "mode", "dtype", "layout", "shape", "side", "ms", "p20–p80", "GB/s", "% copy", "×eager", "×compile", "MiB")
    lines = []
    for row in rows:
        mark = "\\*" if row["host_ms"] and row["gb_s"] and float(row["host_ms"]) > float(row["p50_ms"]) else ""
        lines.append(
            (
                *(row[name] for name in ("op", "mode", "dtype", "layout", "shape")),
                row["backend"],
                number(row["p50_ms"]) + mark,
                f"{number(row['p20_ms'])}–{number(row['p80_ms'])}",
                *(number(row[name]) for name in ("gb_s", "pct_copy", "speedup_eager", "speedup_compile", "peak_mib")),
            )
        )
    return table(header, lines, left=6)


def _span(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return "–"
    low, high = number(str(min(values))), number(str(max(values)))
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def ours(rows: Iterable[Row]) -> list[Row]:
    """Rows of the fused backends."""
    return [row for row in rows if row["backend"] not in PEERS]


def _values(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def short_table(rows: Iterable[Row]) -> str:
    """One line for each operator, fused backend and mode: the range over all cases of one device and allocator."""
    lines = []
    for (op, backend, mode, dtype), group in groups(ours(rows), "op", "backend", "mode", "dtype"):
        largest = max(group, key=elements)
        lines.append(
            (
                op,
                mode,
                f"{backend}, {dtype}",
                _span(_values(group, "speedup_compile"), "×"),
                _span(_values(group, "speedup_eager"), "×"),
                f"{number(largest['gb_s'])} GB/s, {number(largest['pct_copy'])} % of copy",
            )
        )
    header = ("operator", "mode", "kernels", "against torch.compile", "against eager", "largest maps")
    return table(header, lines, left=3)


def losses(rows: Iterable[Row]) -> list[Row]:
    """Cases in which one of our backends is slower than eager or compiled PyTorch."""
    return [r for r in ours(rows) if any(v < 1 for name in ("speedup_eager", "speedup_compile") for v in _values([r], name))]


def _sources(rows: Sequence[Row]) -> str:
    found = sorted({(r["date"][:10], r["commit"], r["torch"], r["triton"], r["cuda"]) for r in rows})
    parts = (f"{d}, commit {c}, PyTorch {t}, Triton {tr}, CUDA {cu}" for d, c, t, tr, cu in found)
    return "Measured: " + "; ".join(parts) + "."


def document(files: dict[str, list[Row]], pictures: dict[str, str], skipped: str = "") -> str:
    """The text of docs/benchmarks.md.

    Args:
        files: latest rows by the name of the result file, e.g. ``cpu-ops``.
        pictures: picture file by the name of the result file.
        skipped: what the last run on a GPU did not measure, a line for each case.
    """
    parts = [EXPLANATION]
    for name, rows in files.items():
        for _, group in groups(rows, "device_name", "threads", "allocator"):
            kind = "Operators" if name.endswith("-ops") else "Models"
            parts.append(f"## {kind}: {where(group[0])}\n\n{_sources(group)}\n")
            if kind == "Operators":
                parts.append(short_table(group))
                slower = losses(group)
                parts.append(
                    "Slower than a peer:\n\n" + case_table(slower)
                    if slower
                    else "No case is slower than eager or compiled PyTorch.\n"
                )
                if name in pictures and group[0]["allocator"] != "default":
                    parts.append(f"![bandwidth against a copy]({pictures[name]})\n")
                parts.append("<details><summary>All cases</summary>\n\n" + case_table(group) + "\n</details>\n")
            else:
                parts.append(case_table(group))
    if skipped:
        parts.append(f"## Not measured in the last run of `python -m bench gpu`\n\n```\n{skipped}```\n")
    return "\n".join(parts)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Bandwidth of each side over the shapes, contiguous and depthwise, one panel for each operator and mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for r in rows if r["layout"] == "contiguous" and " " not in r["shape"] and r["dtype"] == "float32"]
    if not rows:
        return
    panels = dict(groups(rows, "op", "mode"))
    operators = list(dict.fromkeys(op for op, _ in panels))
    modes = [mode for mode in _MODES if any(m == mode for _, m in panels)]
    size = (4.6 * len(modes), 3.0 * len(operators) + 0.6)
    figure, axes = plt.subplots(len(operators), len(modes), figsize=size, layout="constrained", squeeze=False)
    styles: dict[str, dict[str, Any]] = {
        "copy": {"color": "black", "linestyle": "--", "label": "copy (clone)"},
        "eager": {"color": "tab:gray", "marker": "v"},
        COMPILE: {"color": "tab:blue", "marker": "s", "label": "torch.compile"},
        MAX_AUTOTUNE: {"color": "tab:purple", "marker": "s", "label": "torch.compile, max-autotune"},
        "cpu": {"color": "tab:red", "marker": "o", "label": "pyindexnet cpu"},
        "cuda": {"color": "tab:red", "marker": "o", "label": "pyindexnet cuda"},
        "triton": {"color": "tab:orange", "marker": "D", "label": "pyindexnet triton"},
    }
    for i, op in enumerate(operators):
        for j, mode in enumerate(modes):
            axis, panel = axes[i][j], panels.get((op, mode), [])
            shapes = sorted({r["shape"] for r in panel}, key=lambda s: (elements({"shape": s}), s))
            for (backend,), group in groups(panel, "backend"):
                found = {r["shape"]: float(r["gb_s"]) for r in group}
                axis.plot(
                    [shapes.index(s) for s in found], list(found.values()), **{"label": backend, **styles.get(backend, {})}
                )
            axis.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right", fontsize=7)
            axis.set_title(f"{op}, {mode}", fontsize=9)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            if j == 0:
                axis.set_ylabel("GB/s that must move", fontsize=8)
    handles = {label: h for row in axes for a in row for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(where(rows[0]), fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def update_readme(path: Path, text: str) -> bool:
    """Replace what stands between the markers in README; False where it has no markers."""
    old = path.read_text() if path.exists() else ""
    if BEGIN not in old or END not in old:
        return False
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", old, count=1))
    return True


def readme_text(files: dict[str, list[Row]]) -> str:
    """Short tables of the operators, the tuned allocator on a CPU; of several machines the one that was measured last."""
    parts = []
    for name, rows in files.items():
        tuned = [row for row in rows if row["allocator"] != "default"]
        if name.endswith("-ops") and tuned:
            last = where(max(tuned, key=lambda row: row["date"]))
            parts.append(f"{last}:\n\n{short_table(row for row in tuned if where(row) == last)}")
    return "\n".join(parts)


def write_report(results: Path, root: Path) -> list[Path]:
    """Write all documents from the result files.

    Returns:
        The files written.
    Raises:
        ValueError: there are no results.
    """
    files = {path.stem: latest(read(path)) for path in sorted(results.glob("*.csv"))}
    files = {name: rows for name, rows in files.items() if rows}
    if not files:
        raise ValueError(f"bench: {results} must hold result files, got none")
    docs = root / "docs"
    docs.mkdir(exist_ok=True)
    written, pictures = [], {}
    for name, rows in files.items():
        if name.endswith("-ops"):
            device = name.removesuffix("-ops")
            target = docs / f"benchmarks-{device}.png"
            picture([r for r in rows if r["allocator"] != "default"], target)
            if target.exists():
                pictures[name] = target.name
                written.append(target)
    skipped = (results / SKIPPED).read_text() if (results / SKIPPED).exists() else ""
    for target, text in ((docs / "benchmarks.md", document(files, pictures, skipped)), (docs / "benchmarks.html", page(files))):
        target.write_text(text)
        written.append(target)
    readme = root / "README.md"
    if update_readme(readme, readme_text(files)):
        written.append(readme)
    return written
