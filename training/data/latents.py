"""Cached latents of moving digits: what the video models train on.

A folder holds shards `videos_0000.safetensors`, ... and `first_frames_0000.safetensors`, ...; each is a function of
the seed, its number and the autoencoder alone, so shards can be made by several processes, in any order, and those
already there are kept. A shard has

    latents     float16  [N,16,F,H,W] for videos, [N,16,H,W] for first frames (single images, latent frame 0)
    attributes  uint8    [N,13]: the scene as indices (see `scenes_to_indices`)

`load_latents(shards, folder)` returns them all as a `LatentSet`; prompts are phrased anew each time they are asked for.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from diag_core.vae.tiny import TinyVAE

from ..io import checksum, load_tensors, save_tensors
from ..precision import autocast
from .moving_digits import MovingDigitsConfig, draw_clips, render
from .prompts import COLOURS, DIRECTIONS, GROUNDS, MOTIONS, PAIR_FRACTION, SPEEDS, Mover, Scene, random_prompt

log = logging.getLogger(__name__)

_VALUES: dict[str, tuple[int | str | None, ...]] = {
    "digit": tuple(range(10)),
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "direction": (*DIRECTIONS, None),
    "speed": (*SPEEDS, None),
    "turn": (*DIRECTIONS, None),
}
_GROUNDS = tuple(GROUNDS)
_ABSENT = 255
# First frames are drawn from far beyond any video's index, so the two kinds share no clip.
_FIRST_FRAME_OFFSET = 1 << 30
_BATCH = {"videos": 8, "first_frames": 256}
SHARD_SIZE = {"videos": 1000, "first_frames": 10_000}


@dataclass(frozen=True)
class LatentSet:
    """Latents in memory with the scenes they show."""

    videos: torch.Tensor
    """float16 [N,16,F,H,W]"""
    video_attributes: torch.Tensor
    """uint8 [N,13]"""
    first_frames: torch.Tensor
    """float16 [M,16,H,W]"""
    first_frame_attributes: torch.Tensor
    """uint8 [M,13]"""

    def video_prompts(self, indices: Sequence[int] | torch.Tensor, rng: np.random.Generator) -> list[str]:
        """Prompts of these videos, each in a random phrasing."""
        return [
            random_prompt(scene, rng) for scene in indices_to_scenes(self.video_attributes[torch.as_tensor(indices)])
        ]

    def first_frame_prompts(self, indices: Sequence[int] | torch.Tensor, rng: np.random.Generator) -> list[str]:
        """Prompts of these first frames, each in a random phrasing."""
        return [
            random_prompt(scene, rng)
            for scene in indices_to_scenes(self.first_frame_attributes[torch.as_tensor(indices)])
        ]


def scenes_to_indices(scenes: Sequence[Scene]) -> torch.Tensor:
    """Scenes as uint8 [N,13]: the ground, then digit, colour, motion, direction, speed and turn of each of two digits,
    as positions in the grammar's tables; 255 where there is no second digit."""
    rows = []
    for scene in scenes:
        row = [_GROUNDS.index(scene.ground)]
        for mover in scene.movers:
            row += [values.index(getattr(mover, name)) for name, values in _VALUES.items()]
        rows.append(row + [_ABSENT] * (1 + 2 * len(_VALUES) - len(row)))
    return torch.tensor(rows, dtype=torch.uint8).reshape(-1, 1 + 2 * len(_VALUES))


def indices_to_scenes(indices_N13: torch.Tensor) -> list[Scene]:
    """Inverse of `scenes_to_indices`."""
    scenes: list[Scene] = []
    for ground, *rest in indices_N13.tolist():
        parts = [rest[: len(_VALUES)], rest[len(_VALUES) :]]
        movers = [
            Mover(**{name: values[i] for (name, values), i in zip(_VALUES.items(), part, strict=True)})
            for part in parts
            if part[0] != _ABSENT
        ]
        scenes.append(Scene(movers=tuple(movers), ground=_GROUNDS[ground]))
    return scenes


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which samples a file of latents holds, and of what they are made."""

    kind: str
    """"videos" or "first_frames\""""
    number: int
    seed: int
    size: int | None = None
    """samples; left out, that of its kind"""
    split: str = "train"
    data: MovingDigitsConfig = field(default_factory=MovingDigitsConfig)
    pairs: float = PAIR_FRACTION
    """share of scenes with two digits"""

    def __post_init__(self) -> None:
        if self.kind not in SHARD_SIZE:
            raise ValueError(f"unknown kind of latents {self.kind!r}; use one of {', '.join(SHARD_SIZE)}")

    @property
    def samples(self) -> int:
        return SHARD_SIZE[self.kind] if self.size is None else self.size

    def path(self, folder: str | Path) -> Path:
        return Path(folder) / f"{self.kind}_{self.number:04d}.safetensors"

    def made_with(self, vae: TinyVAE) -> dict[str, Any]:
        """All that the file depends on, as its metadata has it."""
        made = {name.name: getattr(self, name.name) for name in dataclasses.fields(self) if name.name != "data"}
        made["size"] = self.samples
        made |= {f"data.{name}": value for name, value in dataclasses.asdict(self.data).items()}
        made["vae"] = checksum(torch.cat([value.flatten().float().cpu() for value in vae.state_dict().values()]))
        return made


@torch.inference_mode()
def make_shard(shard: Shard, folder: str | Path, vae: TinyVAE) -> Path:
    """Render and encode a shard unless its file is there; returns its path.

    Raises ValueError where the file that is there was made otherwise."""
    path, data = shard.path(folder), shard.data
    if path.exists():
        check_shard(shard, folder, vae)
        return path
    device = next(vae.parameters()).device
    offset = shard.number * shard.samples + (_FIRST_FRAME_OFFSET if shard.kind == "first_frames" else 0)
    frames = np.zeros(1) if shard.kind == "first_frames" else None
    latents: list[torch.Tensor] = []
    scenes: list[Scene] = []
    for start in range(0, shard.samples, _BATCH[shard.kind]):
        indices = range(offset + start, offset + min(shard.samples, start + _BATCH[shard.kind]))
        clips = draw_clips(indices, split=shard.split, seed=shard.seed, config=data, pairs=shard.pairs)
        with autocast(device):
            encoded = vae.encode(render(clips, data, frames=frames).to(device)).cpu()
        latents.append(encoded[:, :, 0] if shard.kind == "first_frames" else encoded)
        scenes.extend(clip.scene for clip in clips)
    tensors = {"latents": torch.cat(latents).half(), "attributes": scenes_to_indices(scenes)}
    return save_tensors(path, tensors, shard.made_with(vae))


def check_shard(shard: Shard, folder: str | Path, vae: TinyVAE) -> None:
    """ValueError unless the file is there that `make_shard` makes."""
    path = shard.path(folder)
    if not path.exists():
        raise ValueError(f"{path} is missing. Run the stage latents first, or put its result there")
    with safe_open(str(path), framework="pt") as file:
        before = file.metadata() or {}
    for name, value in shard.made_with(vae).items():
        own = value if isinstance(value, str) else json.dumps(value)
        if before.get(name, own) != own:
            raise ValueError(
                f"{path} was made with {name} {before[name]}, now it is {own}: delete the latents, or choose another "
                "output folder"
            )


def load_latents(shards: Sequence[Shard], folder: str | Path) -> LatentSet:
    """Shards of both kinds, in memory: about 43 MB for 1,000 videos of 81 frames at 64x64, 20 MB for 10,000 first
    frames. They are there (`check_shard`)."""

    def load(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        files = [load_tensors(shard.path(folder))[0] for shard in shards if shard.kind == kind]
        log.info("%d shards of %s from %s", len(files), kind, folder)
        return torch.cat([file["latents"] for file in files]), torch.cat([file["attributes"] for file in files])

    return LatentSet(*load("videos"), *load("first_frames"))
