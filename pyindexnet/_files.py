# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_files(contents: Mapping[Path, bytes], *, durable: bool = False) -> None:
    """Write all files or none: each under a temporary name beside its target, then all renamed.

    What can be foreseen (no room, no right, a folder in the way) fails before the first renaming; should a later renaming fail
    itself, those before it stay.

    Args:
        contents: bytes by path; a file that is there is replaced.
        durable: what was written survives a crash of the machine: flushed to the disk before the renaming, and the names after.
    Raises:
        OSError: a folder is missing or cannot be written to, or a target is a folder; nothing is left behind.
    """
    temporary: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in contents.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            # not from the name, which may be as long as names can be, nor from the process, whose number may come again
            partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
            with open(partial, "xb") as file:
                temporary[path] = partial
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        for path, partial in temporary.items():
            os.replace(partial, path)
        for folder in {path.parent for path in contents} if durable else ():
            _flush_folder(folder)
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        for partial in temporary.values():
            partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
