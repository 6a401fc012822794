# SPDX-License-Identifier: Apache-2.0
"""What the documents show is there: the README's code runs, links lead somewhere, commands and their options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from pyindexnet.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def document_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(path: Path) -> list[list[str]]:
    """Words of each line of a code block that calls pyindexnet, without comments."""
    lines = (line for block in blocks(path, "", "bash", "sh", "console") for line in block.splitlines())
    return [shlex.split(line, comments=True) for line in lines if line.startswith("pyindexnet ")]


def test_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "README.md", "python")
    for block in found:
        exec(compile(block, "README.md", "exec"), {})
    assert found


@pytest.mark.parametrize("path", DOCUMENTS, ids=document_id)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert not [t for t in targets if "://" not in t and not (path.parent / t).exists()]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if commands(path)], ids=document_id)
def test_commands_exist(path: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(path):
        command = group.commands[words[1]]  # type: ignore[attr-defined]
        known = {name for parameter in command.params for name in parameter.opts}
        assert not {word for word in words[2:] if word.startswith("-")} - known, words
