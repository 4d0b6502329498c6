"""Weight files as people have them, opened but not read: .safetensors, .pt/.pth, shards with an index, model folders.

A file is told by its first bytes, not by its name. Pickles are read as weights only: one that would run code is
refused.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .safetensors_file import FormatError, SafetensorsFile, TensorSpec
from .state_dict import WRAPPERS, CheckpointError, unwrap

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_WEB_PAGE = "it is a web page, not weights: the download went wrong (a login page, perhaps). Fetch it again"
_FOREIGN = (
    (b"gguf", "it is a GGUF file, which is quantised. Use an fp16 or bf16 safetensors file of the same model"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it"),
    (b"<!doctype", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
)
_NO_MEMORY = re.compile(r"not enough memory|can(not|'t) allocate memory|error code 1455", re.IGNORECASE)
# On Windows torch maps a file copy on write, which takes as much of the memory as to read it; where that is not there,
# the process may end without a word.
_MAPS_PICKLES = os.name != "nt"
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Weights:
    """An opened set of weights.

    Attributes:
        path: the file or folder they come from.
        specs: stored name -> shape and dtype.
        read: stored name -> tensor. Of a .pt file it stays a view of the mapped file until it is copied or cast;
            otherwise it has memory of its own.
        metadata: text by name, of a safetensors file.
        wrapper: the entry of a .pt file they were under, such as `generator_ema`.
        config: config.json beside the weights of a model folder.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrapper: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def open_weights(path: str | Path, which: str | None = None, wrappers: tuple[str, ...] = WRAPPERS) -> Weights:
    """Open a weight file or a model folder.

    Args:
        path: a file; or a folder with one .safetensors file, or with shards and their index, or with a `transformer`
            folder of that kind (a diffusers pipeline).
        which, wrappers: the entry of a .pt checkpoint to open (`state_dict.unwrap`).

    Raises:
        CheckpointError: names the file, what is wrong with it and what to do.
    """
    path = Path(path)
    try:
        if path.is_dir():
            weights = _open_folder(path)
        elif path.name.endswith(_INDEX):
            weights = _open_shards(path)
        else:
            weights = _open_file(path, which, wrappers)
        if which is not None and weights.wrapper is None:
            raise CheckpointError(f"it holds one model alone, so there is no entry {which!r} to choose")
        return weights
    except (CheckpointError, FormatError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: there is no such file. Check the path, or download the weights first"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: it cannot be read ({error.strerror or error})") from error


def read_all(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor], device: torch.device) -> dict[str, Tensor]:
    """All tensors, of the dtypes and shapes of `specs`, on a device; one that is so already is kept as `read` gave it.

    Room for those that are cast is taken beforehand: were it taken in turns with the uncast ones, the allocator could
    not use the gaps those leave, and the peak would be as high as with two copies.
    """
    room = {name: torch.empty(spec.shape, dtype=spec.dtype, device=device) for name, spec in specs.items()}
    for name, place in room.items():
        tensor = read(name)
        if tensor.dtype == place.dtype and tensor.device == place.device and tensor.is_contiguous():
            room[name] = tensor
        else:
            place.copy_(tensor)
    return room


def _open_file(path: Path, which: str | None = None, wrappers: tuple[str, ...] = WRAPPERS) -> Weights:
    with open(path, "rb") as stream:
        start = stream.read(64)
    for mark, what in _FOREIGN:
        if start.lstrip().lower().startswith(mark):
            raise CheckpointError(what)
    # A safetensors file may begin with any byte, its header's length, but the header itself is a JSON object.
    if start.startswith(_ZIP) or (start.startswith(_PICKLE) and start[8:9] != b"{"):
        return _open_pickle(path, which, wrappers, mapped=start.startswith(_ZIP) and _MAPS_PICKLES)
    file = SafetensorsFile(path)
    if not file.specs:
        raise CheckpointError("it holds no tensors. Fetch it again")
    return Weights(path, file.specs, file.read, file.metadata)


def _open_pickle(path: Path, which: str | None, wrappers: tuple[str, ...], *, mapped: bool) -> Weights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch.load, which a user cannot act on
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged archive or pickle raises whatever its bytes lead to
        raise CheckpointError(_pickle_fault(error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds one {type(content).__name__}, not weights by name. Give a model checkpoint")
    tensors, wrapper = unwrap(content, which, wrappers)
    for name, tensor in tensors.items():
        # A view that repeats its elements costs nothing in the file and terabytes when it is copied.
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise CheckpointError(f"tensor {name!r} is no plain dense tensor. Save it as one, as safetensors best")
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Weights(path, specs, lambda name: tensors[name].detach(), wrapper=wrapper)


def _pickle_fault(error: Exception) -> str:
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function|global) ([\w.]+\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and ("Unsupported" in text or "not allowed" in text or found):
        what = f" ({found[1]})" if found else ""
        return (
            f"it holds Python objects{what} beside its tensors. Reading those would run code from the file, so it was "
            "not read. Get the weights as safetensors; or, if you trust who made the file, open it with their own "
            "tools, save the tensors alone, and convert that"
        )
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return (
            "there is not enough memory to read it: close other programs, enlarge the swap space (on Windows the "
            "paging file), or get the weights as safetensors"
        )
    reason = re.split(r"\.\s|\n", text.strip())[0] or type(error).__name__
    return f"it is damaged, cut short, or no PyTorch checkpoint ({reason}). Fetch it again"


def _open_folder(folder: Path) -> Weights:
    indexes = sorted(folder.glob(f"*{_INDEX}"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indexes) > 1 or (not indexes and len(files) > 1):
        there = ", ".join(file.name for file in (indexes or files)[:10])
        raise CheckpointError(f"the folder holds several models ({there}): give the path of one")
    if indexes:
        weights = _open_shards(indexes[0])
    elif files:
        weights = _open_file(files[0])
    elif (folder / "transformer").is_dir():
        return _open_folder(folder / "transformer")
    else:
        raise CheckpointError("the folder holds no .safetensors files: give a model folder, or the path of a file")
    return Weights(weights.path, weights.specs, weights.read, weights.metadata, config=read_config(folder))


def _open_shards(index: Path) -> Weights:
    shards = _json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index.name} lists no tensors. Fetch it again")
    names = sorted(set(shards.values()))
    for shard in names:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index.name} names {shard!r}, which is no safetensors file beside it")
    absent = [shard for shard in names if not (index.parent / shard).is_file()]
    if absent:
        raise CheckpointError(f"{len(absent)} of {len(names)} shards are missing: {', '.join(absent[:10])}. Fetch them")
    files = {}
    for shard in names:
        try:
            files[shard] = SafetensorsFile(index.parent / shard)
        except FormatError as error:
            raise CheckpointError(f"shard {shard}: {error}") from error
    lost = [name for name, shard in shards.items() if name not in files[shard].specs]
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors are not in the shards that should hold them: {', '.join(lost[:10])}"
        )
    specs = {name: files[shard].specs[name] for name, shard in shards.items()}
    metadata = {key: value for shard in names for key, value in files[shard].metadata.items()}
    config = read_config(index.parent)
    return Weights(index, specs, lambda name: files[shards[name]].read(name), metadata, config=config)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder, {} where there is none."""
    path = folder / "config.json"
    return _json_object(path) if path.is_file() else {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no JSON ({error}). Fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is no JSON object. Fetch it again")
    return content
