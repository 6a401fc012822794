# SPDX-License-Identifier: Apache-2.0
"""Files are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyindexnet._files import write_files


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_files({first: b"old", second: b"older"})
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(OSError, match=r"/a: cannot be written: No space left on device$"):
        write_files({first: b"new", second: b"newer"}, durable=True)
    assert (first.read_bytes(), second.read_bytes()) == (b"old", b"older")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_folder_in_the_way_stops_all(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match=r"/b: cannot be written: Is a directory$"):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_longest_name_and_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    (tmp_path / f".a.{os.getpid()}.tmp").write_bytes(b"half")
    write_files({path: b"new", tmp_path / "a": b"new"}, durable=True)
    assert path.read_bytes() == (tmp_path / "a").read_bytes() == b"new"
