# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.html: kernels against the bandwidth of a copy, networks against peers, memory against resolution.

One file without references to others, from the rows of the result files alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import jinja2

from .results import COLUMNS, COMPILE, MAX_AUTOTUNE, Row, elements, groups, number, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = [name for name in COLUMNS if name not in ("torch", "triton", "cuda", "device_name", "threads", "allocator")]
_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pyindexnet: benchmarks</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 8px; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
div.wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
</style>
</head>
<body>
<h1>pyindexnet: benchmarks</h1>
<p>Made by <code>python -m bench report</code> from <code>bench/results</code>; docs/benchmarks.md says how it is measured
and has the same figures as text. A ratio is of one run; absolute figures are of shared machines.</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for caption, svg in section.pictures %}
<h3>{{ caption }}</h3>
{{ svg | safe }}
{% endfor %}
<details><summary>All {{ section.rows | length }} rows</summary>
<div class="wide"><table>
<tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for name in columns %}<td>{{ row[name] }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
</details>
{% endfor %}
</body>
</html>
"""
)
_COLOURS = {"copy": "black", "eager": "tab:gray", "reference": "silver", COMPILE: "tab:blue", MAX_AUTOTUNE: "tab:purple"}
_OURS, _OTHERS = "tab:red", "tab:green"


def page(files: dict[str, list[Row]]) -> str:
    """The text of docs/benchmarks.html.

    Args:
        files: latest rows by the name of the result file, such as ``cpu-ops``.
    """
    sections = []
    for name, rows in files.items():
        operators = name.endswith("-ops")
        for _, group in groups(rows, "device_name", "threads", "allocator"):
            pictures = operator_pictures(group) if operators else model_pictures(group)
            title = f"{'Operators' if operators else 'Networks'}: {where(group[0])}"
            sections.append({"title": title, "pictures": pictures, "rows": group})
    return _TEMPLATE.render(sections=sections, columns=_SHOWN)


def operator_pictures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Caption and SVG for each mode: the largest case of each operator against a copy of as many bytes."""
    out = []
    for (mode,), of_mode in groups([r for r in rows if r["pct_copy"]], "mode"):
        bars = []
        for (op, layout, dtype), group in groups(of_mode, "op", "layout", "dtype"):
            shape = max(group, key=elements)["shape"]
            sides = [(r["backend"], float(r["pct_copy"])) for r in group if r["shape"] == shape and r["backend"] != "copy"]
            bars.append((f"{op}, {layout}, {dtype}\n{shape}", sides))
        out.append((f"{mode}, largest maps: % of the bandwidth of a copy", _bars(bars, "% of copy", roof=100)))
    return out


def model_pictures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Caption and SVG: times of all sides for each mode, and their peak memory over the pixels of the input."""
    out = []
    for (mode,), of_mode in groups(rows, "mode"):
        bars = [
            (f"{op}, {dtype}\n{layout}, {shape}", [(r["backend"], float(r["p50_ms"])) for r in group])
            for (op, dtype, layout, shape), group in groups(of_mode, "op", "dtype", "layout", "shape")
        ]
        out.append((f"{mode}: milliseconds, shorter is better", _bars(bars, "ms")))
    measured = [r for r in rows if r["peak_mib"] and r["dtype"] == "float32"]
    for (op, mode), group in groups(measured, "op", "mode"):
        if len({r["shape"] for r in group}) > 1:
            out.append((f"{op}, {mode}: peak memory beyond input and weights", _memory(group)))
    return out


def _colour(side: str) -> str:
    if side in _COLOURS:
        return _COLOURS[side]
    return _OURS if side.split("+")[0] in ("cpu", "cuda", "triton") else _OTHERS


def _bars(bars: Sequence[tuple[str, list[tuple[str, float]]]], unit: str, roof: float | None = None) -> str:
    lines = sum(len(sides) + 1 for _, sides in bars)

    def draw(axis: Axes) -> None:
        ticks, labels, y = [], [], 0
        for label, sides in bars:
            ticks.append(y + (len(sides) - 1) / 2)
            labels.append(label)
            for side, value in sides:
                axis.barh(y, value, color=_colour(side), height=0.85)
                axis.annotate(f" {side} {number(str(value))}", (value, y), va="center", fontsize=7)
                y += 1
            y += 1
        if roof is not None:
            axis.axvline(roof, color="black", linestyle="--", linewidth=1)
        axis.set_yticks(ticks, labels, fontsize=7)
        axis.set_xlabel(unit, fontsize=8)
        axis.set_ylim(y - 0.5, -1)
        axis.margins(x=0.15)

    return _svg((9, 0.19 * lines + 0.7), draw)


def _memory(rows: Iterable[Row]) -> str:
    def draw(axis: Axes) -> None:
        for (side, layout), group in groups(rows, "backend", "layout"):
            points = sorted((_pixels(r), float(r["peak_mib"])) for r in group)
            style = "-" if layout == "channels_last" else ":"
            axis.plot(*zip(*points, strict=True), style, marker="o", color=_colour(side), label=f"{side}, {layout}")
        axis.set_xlabel("pixels of the input, all images", fontsize=8)
        axis.set_ylabel("MiB", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)

    return _svg((7, 3.5), draw)


def _pixels(row: Row) -> int:
    batch, _, height, width = map(int, row["shape"].split()[0].split("x"))
    return batch * height * width


def _svg(size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "pyindexnet", "svg.fonttype": "none"}):  # the same file from the same rows
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        draw(axis)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
