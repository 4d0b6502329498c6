"""What a sampler needs to go on after any chunk: in memory, or in a file for another day and another machine.

Shapes: latents [B,C,f,H,W].
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .kv_cache import KVCache
from .safetensors_file import SafetensorsFile, TensorSpec, write_safetensors

_KIND = "diagdistill-state-1"


@dataclass(frozen=True)
class Finished:
    """A committed chunk that later chunks still attend to; kept so that a prompt switch can commit it anew.

    Attributes:
        chunk: its number; given chunks are -1, -2, ...
        last_sigma: level of its last denoising step, which `ContextPolicy.last_step` commits at.
    """

    chunk: int
    start_frame: int
    latents: Tensor
    last_sigma: float

    @property
    def end_frame(self) -> int:
        return self.start_frame + self.latents.shape[2]


@dataclass
class SamplerState:
    """Progress of one video, updated after each chunk by `stream_chunks(state=...)`.

    Attributes:
        chunk: next sampled chunk.
        frame: next latent frame.
        handed_out: latent frames before this one have been yielded; fewer than `frame` after a trimmed end.
        history: finished chunks in the sink or the ring.
        caches: one for each guidance branch.
        id: of the save it was loaded from, or is to be saved as; other files of that save carry it too.
    """

    chunk: int = 0
    frame: int = 0
    handed_out: int = 0
    history: list[Finished] = field(default_factory=list)
    caches: list[KVCache] = field(default_factory=list)
    settings: dict[str, Any] | None = None
    saved_caches: list[dict[str, Any]] = field(default_factory=list)
    id: str | None = None

    @property
    def started(self) -> bool:
        return self.settings is not None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state as safetensors, atomically.

        Raises:
            ValueError: no chunk has been sampled yet.
        """
        if not self.history:
            raise ValueError("nothing to save: no chunk has been finished yet")
        tensors: dict[str, Tensor] = {}
        caches = [cache.state_dict() for cache in self.caches] or self.saved_caches
        for i, cache in enumerate(caches):
            tensors |= {f"cache.{i}.{name}": tensor for name, tensor in cache["tensors"].items()}
        tensors |= {f"history.{i}": finished.latents for i, finished in enumerate(self.history)}
        document = {
            "chunk": self.chunk,
            "frame": self.frame,
            "handed_out": self.handed_out,
            "settings": self.settings,
            "id": self.id,
            "counters": [cache["counters"] for cache in caches],
            "history": [[f.chunk, f.start_frame, f.last_sigma] for f in self.history],
        }
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        metadata = {"state": json.dumps(document), "kind": _KIND}
        write_safetensors(Path(path), specs, tensors.__getitem__, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SamplerState:
        """Reads what `save` wrote.

        Raises:
            ValueError: another kind of file, or a damaged one.
        """
        try:
            file = SafetensorsFile(Path(path))  # no mapping, which would keep Windows from saving over it
            metadata, tensors = file.metadata, {name: file.read(name) for name in file.specs}
            if metadata.get("kind") != _KIND:
                raise ValueError("it is not a sampler state")
            document = json.loads(metadata["state"])
            caches = []
            for i, counters in enumerate(document["counters"]):
                prefix = f"cache.{i}."
                own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
                caches.append({"tensors": own, "counters": counters})
            history = [
                Finished(chunk, start, tensors[f"history.{i}"], sigma)
                for i, (chunk, start, sigma) in enumerate(document["history"])
            ]
            return cls(
                chunk=document["chunk"],
                frame=document["frame"],
                handed_out=document["handed_out"],
                history=history,
                settings=document["settings"],
                saved_caches=caches,
                id=document.get("id"),  # older files have none
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a saved state: {error}") from error
