"""The safetensors format, one tensor at a time: reading without a mapping of the file, writing without a second copy.

A file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, byte offsets, and
`__metadata__`, text to text), and the tensors' bytes, without gaps. The public library maps files, which keeps them
busy while a model lives and counts twice when weights are cast; here a tensor costs its own bytes and no more.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from .replacing import replacing

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_ALIGNMENT = 8
_MAX_RANK = 16
_MAX_SIZE = 2**63


class FormatError(ValueError):
    """What is wrong inside a file; whoever opened it adds its name."""


class TensorSpec(NamedTuple):
    """A tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class SafetensorsFile:
    """An open description of one .safetensors file; tensors are read on demand.

    Raises:
        FormatError: it is cut short, damaged, or of a dtype this torch cannot hold.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.specs, self.metadata, self._offsets = _read_header(file, os.fstat(file.fileno()).st_size)

    def read(self, name: str) -> Tensor:
        """A tensor of its own memory; nothing of the file stays open."""
        shape, dtype = self.specs[name]
        begin, end = self._offsets[name]
        data = torch.empty(end - begin, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(begin)
            if end > begin and file.readinto(data.numpy().data) != end - begin:
                raise FormatError("it became shorter while it was read")
        return data.view(dtype).reshape(shape)


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, TensorSpec], dict[str, str], dict[str, tuple[int, int]]]:
    if size == 0:
        raise FormatError("it is empty: the download or the copy did not happen. Fetch it again")
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(_MAX_HEADER, size - 8):
        raise FormatError(f"it ends inside its header ({size} bytes in all), or is no safetensors file. Fetch it again")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its header cannot be read ({error}). Fetch it again") from error
    if not isinstance(header, dict):
        raise FormatError("its header is no JSON object. Fetch it again")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("its metadata is not text. Fetch it again")

    specs, spans = {}, {}
    for name, entry in header.items():
        specs[name], spans[name] = _tensor_entry(name, entry)
    end = 0
    for name, (begin, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end:
            raise FormatError(
                f"tensor {name!r} begins at byte {begin}, not {end}: the header is damaged. Fetch it again"
            )
        end = stop
    data = size - 8 - length
    if end > data:
        raise FormatError(f"it is cut short: {data} of {end} bytes of tensors are there. Fetch it again")
    if end < data:
        raise FormatError(f"{data - end} bytes follow its last tensor: it is damaged. Fetch it again")
    base = 8 + length
    return specs, metadata, {name: (base + begin, base + stop) for name, (begin, stop) in spans.items()}


def _tensor_entry(name: str, entry: object) -> tuple[TensorSpec, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise FormatError(f"tensor {name!r} is not described. Fetch it again")
    dtype, shape, span = entry.get("dtype"), _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or span is None or len(span) != 2 or not isinstance(dtype, str):
        raise FormatError(f"the description of tensor {name!r} is damaged. Fetch it again")
    if dtype not in _DTYPES:
        raise FormatError(f"tensor {name!r} is of dtype {dtype}, which is not supported. Use an fp16 or bf16 file")
    spec = TensorSpec(shape, _DTYPES[dtype])
    if math.prod(max(n, 1) for n in shape) >= _MAX_SIZE or math.prod(shape) * spec.dtype.itemsize != span[1] - span[0]:
        raise FormatError(f"tensor {name!r} has more or fewer bytes than its shape {shape} needs. Fetch it again")
    return spec, (span[0], span[1])


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of sizes as a tuple, None for anything torch could not index."""
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < _MAX_SIZE for n in value):
        return None
    return tuple(value)


def write_safetensors(
    path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors one at a time, through a temporary file beside `path` that replaces it at the end.

    Args:
        specs: what will be written.
        read: name -> tensor, asked for once each; it is moved to the CPU, cast and laid out as its spec says.
        metadata: text by name; `format` is set to "pt", without which transformers refuses a file.

    Raises:
        OSError: no space, no permission. Nothing is left behind, and a file that was there stays as it was.
    """
    header: dict[str, object] = {"__metadata__": {**metadata, "format": "pt"}}
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # wide types first: all stay aligned
    end = 0
    for name in order:
        shape, dtype = specs[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            shape, dtype = specs[name]
            tensor = read(name).detach().to("cpu", dtype).contiguous()
            assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} is not {shape}"
            if tensor.numel():
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
