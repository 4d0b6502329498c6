"""Save Video State and Load Video State: go on with a sampled video another day, on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..diag_core import Take, Timeline
from ..diag_core.safetensors_file import FormatError, SafetensorsFile, TensorSpec, write_safetensors
from . import comfy_bridge
from .files import file_fault, file_mark
from .record import RECORD_KEY, Record

_KIND = "diagdistill-record-1"
_FOLDER = "diagdistill"
_ENDING = ".video.safetensors"


def write_record(path: Path, samples: Tensor, record: Record) -> None:
    """LATENT samples [B,16,F,h,w] and how they came about, in one file, whole or not at all."""
    tensors: dict[str, Tensor] = {"samples": samples}
    if record.given is not None:
        tensors["given"] = record.given
    for number, take in enumerate(record.takes):
        tensors[f"take.{number}"] = take.latents
        if take.last_input is not None:
            tensors[f"take.{number}.input"] = take.last_input
    timelines = []
    for number, timeline in enumerate(record.timelines):
        names: dict[int, str] = {}
        entries = []
        for start, context in timeline.entries:
            name = names.setdefault(id(context), f"prompt.{number}.{len(names)}")
            tensors[name] = context
            entries.append([start, name])
        timelines.append({"entries": entries, "blend_chunks": timeline.blend_chunks})
    document = {
        "chunk_frames": record.chunk_frames,
        "length": record.length,
        "last_sigmas": [take.last_sigma for take in record.takes],
        "timelines": timelines,
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, specs, tensors.__getitem__, {"kind": _KIND, "record": json.dumps(document)})


def read_record(path: Path) -> tuple[Tensor, Record]:
    """What `write_record` wrote.

    Raises ValueError for another kind of file, or a damaged one."""
    try:
        file = SafetensorsFile(path)
        if file.metadata.get("kind") != _KIND:
            raise ValueError("it was not written by Save Video State")
        document = json.loads(file.metadata["record"])
        contexts: dict[str, Tensor] = {}
        timelines = []
        for timeline in document["timelines"]:
            for _, name in timeline["entries"]:
                contexts.setdefault(name, file.read(name))
            entries = [(start, contexts[name]) for start, name in timeline["entries"]]
            timelines.append(Timeline(entries, timeline["blend_chunks"]))
        takes = []
        for number, sigma in enumerate(document["last_sigmas"]):
            last_input = f"take.{number}.input"
            takes.append(
                Take(
                    file.read(f"take.{number}"), file.read(last_input) if last_input in file.specs else None, sigma
                )
            )  # fmt: skip
        given = file.read("given") if "given" in file.specs else None
        record = Record(document["chunk_frames"], document["length"], given, tuple(takes), tuple(timelines))
        return file.read("samples"), record
    except (OSError, FormatError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read as a video's state: {error}") from error


def _folder() -> Path:
    return Path(folder_paths.get_output_directory()) / _FOLDER


def _names() -> list[str]:
    """Of all states in output/diagdistill, newest first."""
    found = _folder().rglob(f"*{_ENDING}") if _folder().is_dir() else ()
    newest = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.relative_to(_folder()).as_posix() for path in newest]


class DiagDistillSaveState(io.ComfyNode):
    """A sampled LATENT, with all it takes to go on, as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillSaveState",
            display_name="Save Video State",
            category="DiagDistill",
            description="Saves a sampled latent with all it takes to extend it another day, on another machine.",
            inputs=[
                io.Latent.Input("latent", tooltip="From the Diagonal Sampler, unchanged."),
                io.String.Input(
                    "filename_prefix",
                    default="state",
                    tooltip="The file, in output/diagdistill; a number is added. About 2.4 MB a chunk at 832x480, "
                    "3.6 MB where the last step is reused, and 8 MB a prompt.",
                ),
            ],
            outputs=[io.Latent.Output("same", display_name="latent", tooltip="The same latent, for what comes after.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], filename_prefix: str) -> io.NodeOutput:
        samples, record = comfy_bridge.check_latent(latent), latent.get(RECORD_KEY)
        if record is None:
            raise ValueError(
                "this LATENT does not say how it was sampled: connect the Diagonal Sampler's output directly. A latent "
                "alone is saved with Save Latent"
            )
        record.check(comfy_bridge.normalise(samples), record.chunk_frames)
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            f"{_FOLDER}/{filename_prefix}", folder_paths.get_output_directory()
        )
        path = Path(folder, f"{name}_{counter:05}_{_ENDING}")
        while path.exists():
            counter += 1
            path = Path(folder, f"{name}_{counter:05}_{_ENDING}")
        write_record(path, samples, record)
        said = f"{path.name}: {record.length} latent frames, {path.stat().st_size / 1e6:.1f} MB"
        return io.NodeOutput(latent, ui={"text": (said,)})


class DiagDistillLoadState(io.ComfyNode):
    """The LATENT of Save Video State."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiagDistillLoadState",
            display_name="Load Video State",
            category="DiagDistill",
            description="Loads what Save Video State saved: as if the Diagonal Sampler had just made it.",
            inputs=[
                io.Combo.Input(
                    "state",
                    options=_names(),
                    tooltip="A file of output/diagdistill, newest first. Put one from another machine there.",
                )
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="For Extend Video, and then a sampler with the same model, seed and settings.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, state: str | None = None) -> bool | str:
        return file_fault("state", state, _names())

    @classmethod
    def fingerprint_inputs(cls, state: str) -> Any:
        return file_mark(_folder() / state)

    @classmethod
    def execute(cls, state: str) -> io.NodeOutput:
        if state not in _names():
            raise ValueError(f"there is no file '{state}' in output/{_FOLDER}")
        with torch.inference_mode(False):
            samples, record = read_record(_folder() / state)
        return io.NodeOutput({"samples": samples, RECORD_KEY: record})


NODES = [DiagDistillSaveState, DiagDistillLoadState]
