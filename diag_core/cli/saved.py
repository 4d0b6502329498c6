"""A video on disk to go on with: the sampler's state, and beside it the latents so far and what was asked for.

The decoder's memory is not saved: going on decodes the latents so far again, so that the file holds the whole video.
Shapes: latents [1,C,F,h,w].
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..safetensors_file import FormatError, SafetensorsFile, TensorSpec, write_safetensors
from ..state import SamplerState
from .request import VideoRequest

_KEY = "diagdistill-video-1"  # of the metadata entry; a later format has another
_SAVES = "diagdistill-saves"  # of the entry with the ids of all saves that led to the latents; older files have none


@dataclass
class Recording:
    """A video in the making, filled by the pipeline."""

    state: SamplerState = field(default_factory=SamplerState)
    latents: list[Tensor] = field(default_factory=list)
    """pieces, in their order, on the CPU"""
    saves: list[str | None] = field(default_factory=list)
    """ids of the saves that led here, each with a state that still finds its latents here"""

    def joined(self) -> Tensor | None:
        """All latent frames so far, None when there are none."""
        return torch.cat(self.latents, dim=2) if self.latents else None

    def save(self, path: Path, request: VideoRequest) -> None:
        """Write both files, each whole or not at all. OSError when they cannot be written."""
        latents = self.joined()
        assert latents is not None, "nothing was sampled"
        self.state.id = secrets.token_hex(16)
        self.saves.append(self.state.id)
        metadata = {_KEY: json.dumps(request.to_dict()), _SAVES: json.dumps(self.saves)}
        spec = TensorSpec(tuple(latents.shape), latents.dtype)
        # Latents first: should the second file fail, the older state still finds all it needs here.
        write_safetensors(latents_path(path), {"latents": spec}, lambda _: latents, metadata)
        self.state.save(path)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Raises ValueError for files that are no saved video, or do not belong together."""
        state = SamplerState.load(path)
        file = _open(path)
        try:
            saves = json.loads(file.metadata.get(_SAVES, "[null]"))
            latents = file.read("latents")
        except (FormatError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{file.path}: it cannot be read ({error})") from error
        if state.id not in saves or latents.dim() != 5 or latents.shape[2] < state.handed_out:
            raise ValueError(f"{file.path}: it does not hold the latents that lead to {path}; save both anew")
        return cls(state, [latents[:, :, : state.handed_out]], saves)


def latents_path(path: Path) -> Path:
    """Beside the state, and of its whole name: "clip.v1" and "clip.v2" do not share one."""
    return path.with_name(f"{path.name}.latents.safetensors")


def read_request(path: Path) -> VideoRequest:
    """What a saved video was asked for, without reading the rest.

    Raises:
        ValueError: a file is missing, or is no saved video.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such saved video (--save-state writes one)")
    file = _open(path)
    try:
        return VideoRequest.from_dict(json.loads(file.metadata[_KEY]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.path}: it cannot be read ({error})") from error


def _open(path: Path) -> SafetensorsFile:
    beside = latents_path(path)
    if not beside.exists():
        older = path.with_name(f"{path.stem}.latents.safetensors")  # as earlier versions named it
        beside = older if older.exists() else beside
    try:
        file = SafetensorsFile(beside)
    except FileNotFoundError:
        raise ValueError(f"{beside} is missing: a saved video is that file and {path.name}, side by side") from None
    except FormatError as error:
        raise ValueError(f"{beside}: {error}") from error
    if _KEY not in file.metadata:
        raise ValueError(f"{beside} was not written by --save-state")
    return file
