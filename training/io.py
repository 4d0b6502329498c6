"""Files that are whole or absent: tensors and small results, written atomically, and reading them back."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from diag_core.replacing import replacing
from diag_core.safetensors_file import TensorSpec, write_safetensors


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a safetensors file; metadata values that are not strings are stored as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_safetensors(path, specs, tensors.__getitem__, text)
    return path


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's values as they are stored, on the CPU: tells a damaged one."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises the OSError behind a RuntimeError: of a full disk PyTorch's writer tells that its file has not the size it
    should have."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def remove_leftovers(folder: str | Path) -> None:
    """Delete what processes that were killed while writing into `folder` had written so far, files and folders."""
    for part in Path(folder).glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def save_json(path: str | Path, value: Any) -> Path:
    """Write a small result file that people read too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
    return path
