"""A run's saved states, each whole or absent, from any number of processes for any other number.

A folder holds `step_000120/` and the like, the newest two. In each there is a file for every process that wrote it, in
the format of torch.distributed.checkpoint, and `manifest.json` with the size and check sum of all of them. A state is
written into a hidden folder whose name ends in `.part`, which takes its own name only when everything is on disk; so a
kill leaves nothing that could be taken for a state. The folder must be on a disk that all hosts share.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import (
    CheckpointException,
    FileSystemReader,
    FileSystemWriter,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from diag_core.replacing import replace_file

from .distributed import agreement, from_all, from_main, is_main, rank, world_size
from .io import disk_errors, remove_leftovers, save_json

KEPT = 2
MANIFEST = "manifest.json"
_READ = 1 << 24  # bytes


def save(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes a state, and deletes all but the newest two. All processes must call it.

    Args:
        state: nested mappings of tensors, whole or sharded, and plain values.

    Raises:
        OSError: a full disk, say; what was there stays as it was.
        ValueError: the hosts do not share the folder.
    """
    path = folder / f"step_{step:06d}"
    part = folder / f".{path.name}.part"
    try:
        with agreement():
            if is_main():
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
        with agreement():
            _write(part, state)
        with agreement():
            own = {name.name: _sum_of(name) for name in part.glob(f"__{rank()}_*")}
        files = {name: entry for written in from_all(own) for name, entry in written.items()}
        with agreement():
            if is_main():
                _finish(part, path, files)
    except BaseException:
        if is_main():
            shutil.rmtree(part, ignore_errors=True)
        raise


def load(folder: Path, state: dict[str, Any], *, last: int | None = None) -> bool:
    """Reads the newest state into the tensors and over the plain values of `state`; False when there is none.

    All processes must call it. Every file is checked before anything is changed.

    Args:
        state: of the shape that was saved; tensors may be sharded over another number of processes.
        last: states of later iterations are left alone.

    Raises:
        ValueError: a file is damaged or missing (names it), the state is of another model, or there are states of
            later iterations alone.
    """
    with agreement():
        if is_main():
            remove_leftovers(folder)
    path = from_main(newest(folder, last))
    if path is None:
        if there := from_main(saved(folder)):
            states = " and ".join(map(str, there))
            raise ValueError(
                f"{folder}: the saved states are of iterations {states}, all beyond steps={last}. Set steps to "
                f"{there[0]} or more"
            )
        return False
    with agreement():
        _check(path)
    with agreement():
        try:
            with _quiet():
                dcp.load(state, storage_reader=FileSystemReader(path), no_dist=world_size() == 1)
        except CheckpointException as error:
            cause = _first(error)
            raise ValueError(f"{path} does not fit what is trained: {cause}") from cause
    return True


def newest(folder: Path, last: int | None = None) -> Path | None:
    """The newest whole state of a folder, of iteration `last` at most; None where there is none."""
    whole = [path for path in _whole(folder) if last is None or _step(path) <= last]
    return whole[-1] if whole else None


def saved(folder: Path) -> list[int]:
    """The iterations of a folder's whole states, oldest first."""
    return [_step(path) for path in _whole(folder)]


def _whole(folder: Path) -> list[Path]:
    """Oldest first; a copy that someone keeps under another name is none."""
    whole = [path.parent for path in folder.glob(f"step_*/{MANIFEST}")]
    return sorted((path for path in whole if path.name.removeprefix("step_").isdecimal()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


class _Writer(FileSystemWriter):
    """One whose errors are the disk's. On several processes they are told to all as they are raised here, without what
    was behind them."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with disk_errors():
            return super().write_data(plan, planner)


def _write(part: Path, state: Mapping[str, Any]) -> None:
    try:
        with _quiet():
            dcp.save(dict(state), storage_writer=_Writer(part), no_dist=world_size() == 1)
    except CheckpointException as error:
        raise _first(error) from None


def _finish(part: Path, path: Path, files: dict[str, tuple[int, int]]) -> None:
    files = {".metadata": _sum_of(part / ".metadata")} | files
    if missing := [name for name in files if not (part / name).exists()]:
        raise ValueError(f"{part / missing[0]} was written by another host and is not here: {_SHARED}")
    save_json(part / MANIFEST, {"files": files})
    _sync(part)
    replace_file(part, path)
    _sync(path.parent)
    for old in _whole(path.parent)[:-KEPT]:
        # Half deleted, it must not look like a state either.
        replace_file(old, hidden := old.with_name(f".{old.name}.part"))
        shutil.rmtree(hidden)


def _check(path: Path) -> None:
    """ValueError unless all files are as they were written; each process reads its share of them."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise ValueError(f"{path} is there on one host and not on another: {_SHARED}") from None
    except (ValueError, KeyError, TypeError):
        _damaged(path / MANIFEST, "it cannot be read")
    for number, (name, (size, checksum)) in enumerate(sorted(files.items())):
        if number % world_size() != rank():
            continue
        file = path / name
        if not file.exists():
            _damaged(file, "it is missing")
        if file.stat().st_size != size:
            _damaged(file, f"it has {file.stat().st_size} bytes, not {size}")
        if _sum_of(file) != (size, checksum):
            _damaged(file, "its check sum is another")


_SHARED = "put the output folder on a disk that all hosts share"


def _damaged(file: Path, how: str) -> NoReturn:
    raise ValueError(
        f"{file} is damaged: {how}. Restore the file, or delete the folder {file.parent} to go on from the state before"
    )


def _sum_of(file: Path) -> tuple[int, int]:
    """Size and CRC-32."""
    size = checksum = 0
    with open(file, "rb") as data:
        while block := data.read(_READ):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return size, checksum


def _sync(folder: Path) -> None:
    """Puts on disk which files a folder has."""
    if os.name == "nt":  # which does not open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _first(error: CheckpointException) -> BaseException:
    """What went wrong on the first process where something did."""
    return error.failures[min(error.failures)][0]
