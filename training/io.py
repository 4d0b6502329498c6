"""Files that are whole or absent: atomic writes of tensors and of training state, and reading them back.

Everything is written beside its destination and renamed over it, so a run that is killed leaves either the old file
or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write_atomically(path: str | Path, write: Callable[[str], Any]) -> Path:
    """Call `write(temporary_path)` and rename the result to `path`; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        # mkstemp makes files that only their owner may read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a safetensors file; metadata values that are not strings are stored as JSON."""
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=text))


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(str(path), framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def save_state(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write training state (state dicts, counters) for `load_state`."""
    return write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: str | Path) -> dict[str, Any] | None:
    """State written by `save_state`, or None when there is none yet. Tensors and plain values only."""
    if not Path(path).exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
