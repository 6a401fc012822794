# SPDX-License-Identifier: Apache-2.0
"""Result files, and the documents made from them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from bench import report, results
from bench.__main__ import main
from bench.report_page import page
from bench.results import COLUMNS, Row

#: op, backend, mode, layout, shape, p50_ms, host_ms, gb_s, pct_copy, speedup_eager, speedup_compile, allocator, commit
MEASURED = """
indexed_pool copy    forward contiguous 1x64x64x64    0.1  - 23  100 20   10   tuned aaa
indexed_pool eager   forward contiguous 1x64x64x64    2.0  - 1.1 5   1    0.5  tuned aaa
indexed_pool compile forward contiguous 1x64x64x64    1.0  - 2.3 10  2    1    tuned aaa
indexed_pool cpu     forward contiguous 1x64x64x64    9.0  - 2.5 11  0.2  0.1  tuned aaa
indexed_pool copy    forward contiguous 1x32x1024x1024 10  - 30  100 21   9    tuned aaa
indexed_pool cpu     forward contiguous 1x32x1024x1024 11  - 27  91  19   8    tuned aaa
indexed_pool cpu     forward contiguous 1x64x64x64    0.11 - 21  90  18   9    tuned bbb
indexed_pool cpu     forward contiguous 1x64x64x64    5.0  - 0.5 90  7    3    default bbb
indexed_upsample cpu forward contiguous 1x64x64x64    0.12 - 20  85  1.5  0.75 tuned bbb
"""


def _row(line: str) -> Row:
    names = ("op", "backend", "mode", "layout", "shape", "p50_ms", "host_ms", "gb_s", "pct_copy", "speedup_eager")
    values = dict(zip((*names, "speedup_compile", "allocator", "commit"), line.split(), strict=True))
    row = dict.fromkeys(COLUMNS, "") | {k: "" if v == "-" else v for k, v in values.items()}
    same = {
        "dtype": "float32",
        "p20_ms": row["p50_ms"],
        "p80_ms": row["p50_ms"],
        "rounds": "9",
        "peak_mib": "1",
        "threads": "2",
    }
    return (
        row | same | {"torch": "2.13", "triton": "3.9", "cuda": "none", "device_name": "Some CPU", "date": "2026-01-02T03:04Z"}
    )


ROWS = [_row(line) for line in MEASURED.strip().splitlines()]


def test_append_and_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cpu-ops.csv"
    results.append(path, ROWS[:2])
    before = path.read_text()
    results.append(path, ROWS[2:])
    assert path.read_text().startswith(before)
    assert results.read(path) == ROWS
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_append_refuses_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "cpu-ops.csv"
    path.write_text("op,ms\nindexed_pool,1\n")
    with pytest.raises(ValueError, match=r"bench: columns of .*cpu-ops.csv must be op,backend,.*, got op,ms"):
        results.append(path, ROWS)
    assert path.read_text() == "op,ms\nindexed_pool,1\n"


def test_key_and_series() -> None:
    assert results.SERIES[:6] == ("op", "backend", "mode", "dtype", "layout", "shape")
    latest = results.latest(ROWS)
    assert len(latest) == len(ROWS) - 1
    small = [r for r in latest if r["backend"] == "cpu" and r["shape"] == "1x64x64x64" and r["op"] == "indexed_pool"]
    assert [(r["allocator"], r["p50_ms"]) for r in small] == [("tuned", "0.11"), ("default", "5.0")]


def test_short_table() -> None:
    tuned = [r for r in results.latest(ROWS) if r["allocator"] == "tuned"]
    lines = report.short_table(tuned).splitlines()
    assert lines[2] == "| indexed_pool | forward | cpu, float32 | 8–9× | 18–19× | 27 GB/s, 91 % of copy |"
    assert lines[3] == "| indexed_upsample | forward | cpu, float32 | 0.75× | 1.5× | 20 GB/s, 85 % of copy |"
    assert len(lines) == 4


def test_losses_are_found() -> None:
    assert [(r["op"], r["speedup_compile"]) for r in report.losses(results.latest(ROWS))] == [("indexed_upsample", "0.75")]


def test_a_call_that_the_host_cannot_feed_is_marked() -> None:
    row = ROWS[0] | {"host_ms": "0.2"}
    assert "| 0.1\\* |" in report.case_table([row])
    assert "\\*" not in report.case_table([row | {"host_ms": "0.05"}])


@pytest.mark.parametrize(
    ("text", "shown"), [("", "–"), ("0.0012345", "0.00123"), ("12.345", "12.3"), ("1234.5", "1234"), ("100", "100")]
)
def test_number(text: str, shown: str) -> None:
    assert results.number(text) == shown


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.append(tmp_path / "results" / "cpu-ops.csv", ROWS)
    model = _row("indexnet_matting cpu forward contiguous 1x4x512x512 300 - - - 1.7 - tuned bbb")
    results.append(tmp_path / "results" / "cpu-models.csv", [model])
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\nold\n{report.END}\nrest\n")
    command = ["report", "--results", str(tmp_path / "results"), "--root", str(tmp_path)]
    assert main(command) == 0
    text_page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "## Operators: Some CPU, 2 threads, tuned allocator" in text_page
    assert "## Operators: Some CPU, 2 threads, default allocator" in text_page
    assert "## Models: Some CPU, 2 threads, tuned allocator" in text_page
    assert text_page.index("tuned allocator\n") < text_page.index("default allocator\n")
    assert text_page.count("![bandwidth against a copy](benchmarks-cpu.png)") == 1
    assert text_page.count("Slower than a peer:") == 1
    assert "Measured: 2026-01-02, commit aaa, PyTorch 2.13" in text_page
    assert "9.0" not in text_page  # replaced by a later run
    height, width = matplotlib.image.imread(tmp_path / "docs" / "benchmarks-cpu.png").shape[:2]
    assert min(height, width) > 200
    text = readme.read_text()
    assert text.startswith(f"# Title\n{report.BEGIN}\nSome CPU, 2 threads, tuned allocator:")
    assert text.endswith(f"{report.END}\nrest\n")
    assert "old" not in text
    assert "default allocator" not in text
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(command) == 0  # again: the same
    assert readme.read_text() == text


def test_report_of_a_gpu(tmp_path: Path) -> None:
    """The compiled peer in either mode is not one of ours, and what was not measured is listed."""
    sides = [row | {"allocator": results.GPU_ALLOCATOR, "device_name": "Some GPU"} for row in ROWS]
    tuned = [row | {"backend": results.MAX_AUTOTUNE} for row in sides if row["backend"] == results.COMPILE]
    ours = [row for row in sides if row["backend"] == "cpu"]
    assert tuned
    assert report.ours([*tuned, *ours]) == ours
    results.append(tmp_path / "results" / "cuda-ops.csv", [*tuned, *ours])
    (tmp_path / "results" / results.SKIPPED).write_text("network:tmfnet: tmfnet, forward: not started, 9 s were left\n")
    assert main(["report", "--results", str(tmp_path / "results"), "--root", str(tmp_path)]) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "## Operators: Some GPU\n" in text
    assert "| max-autotune |" in text
    assert text.endswith("```\nnetwork:tmfnet: tmfnet, forward: not started, 9 s were left\n```\n")


def test_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    assert not report.update_readme(readme, "table")
    assert readme.read_text() == "# Title\n"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page() -> None:
    """It stands alone, holds every row, draws operators against a copy and networks over their sizes, and escapes text."""
    network = {"op": "indexnet_matting", "gb_s": "", "pct_copy": "", "peak_mib": "7"}
    models = [row | network | {"shape": f"1x4x{side}x{side}"} for row in ROWS[1:2] for side in (64, 128)]
    text = page({"cpu-ops": [ROWS[0] | {"commit": "<script>"}, *ROWS[1:]], "cpu-models": models})
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    outside = [a for _, attributes in parsed.tags for k, a in attributes.items() if k in ("src", "href", "xlink:href")]
    assert all((a or "").startswith("#") for a in outside)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert sum(tag == "tr" for tag, _ in parsed.tags) == len(ROWS) + len(models) + 3  # with a header for each device
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4  # two allocators' bars; times and memory of the network
    assert "indexed_pool, contiguous, float32" in parsed.text
    assert "indexnet_matting, forward: peak memory" in parsed.text
    assert page({"cpu-models": models}) == page({"cpu-models": models})
