"""Files that a workflow names: only those in ComfyUI's folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths


def chosen_file(folders: Sequence[str], name: str) -> Path:
    """The file `name` of the first of ComfyUI's folders (as "vae") that lists it.

    Raises:
        ValueError: none does. Names outside the folders are never listed.
    """
    for folder in folders:
        listed = _listed(name, folder_paths.get_filename_list(folder))
        if listed is not None:
            path = folder_paths.get_full_path(folder, listed)
            if path is not None:
                return Path(path)
    raise ValueError(f"there is no file '{name}' in models/{' or models/'.join(folders)}")


def _listed(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that is meant: in subfolders, workflows have the slashes of the system that they come from."""
    return next((listed for listed in names if listed.replace("\\", "/") == name.replace("\\", "/")), None)


def file_fault(field: str, name: str | None, names: Sequence[str]) -> bool | str:
    """For `validate_inputs`, as ComfyUI does not check combos of these nodes: True, or what is wrong.

    None is a name that another node brings.
    """
    if name is None or _listed(name, names) is not None:
        return True
    return f"{field}: there is no file '{name}' in ComfyUI's folders; put it there, press R, and choose it again"


def choice_fault(field: str, value: str | None, options: Sequence[str]) -> bool | str:
    """The same for choices that are no files."""
    if value is None or value in options:
        return True
    return f"{field}: there is no '{value}'; choose one of {', '.join(options)}"


def first_fault(*faults: bool | str) -> bool | str:
    return next((fault for fault in faults if fault is not True), True)


def file_mark(path: Path) -> Any:
    """Changes when the file does, so that it is read anew."""
    status = path.stat()
    return [str(path), status.st_mtime_ns, status.st_size]
