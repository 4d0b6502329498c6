"""Files that take another's place all at once, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Windows refuses to rename a file that a virus scanner, an indexer or a player has open. The first two let go soon.
_PATIENCE = 5.0 if os.name == "nt" else 0.0  # s


def replace_file(source: Path, target: Path) -> None:
    """`os.replace`, which on Windows waits some seconds for other programs that have either file open.

    Raises:
        OSError: it cannot be; both files are as they were.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.1)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file, to be written and read back, that takes the place of `path` once all is on disk, or leaves no trace."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_file(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
