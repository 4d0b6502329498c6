"""Scores of generated moving digits against their prompts.

Pure functions of pixels; `evaluate_videos` runs them over any sampler. Chance levels: 10% of digits, 25% of directions,
12.5% of colours.

Shapes: B videos, T pixel frames; pixels [B,3,T,H,W] in -1..1, clamped here; tracks [B,T,2] as (x, y) in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diag_core.geometry import first_pixel_frame_of

from .classifier import DigitClassifier, centroids, foreground
from .data.prompts import COLOURS, DIGIT_WORDS, DIRECTIONS, GROUNDS, Scene, parse, random_prompt

log = logging.getLogger(__name__)

Sampler = Callable[[list[str], int], torch.Tensor]
"""(prompts, seed) -> pixels [B,3,T,H,W] in -1..1"""

CHANCE = {"digit": 1 / len(DIGIT_WORDS), "direction": 1 / len(DIRECTIONS), "colour": 1 / len(COLOURS)}

_COLOUR_NAMES = tuple(COLOURS)
_DIRECTION_NAMES = tuple(DIRECTIONS)
# Digits start up to 5 pixels into their path and take at least 20 frames to the edge, so none has turned by then.
_DIRECTION_FRAMES = 20
_LEAST_DISPLACEMENT = 3.0


@dataclass(frozen=True)
class Track:
    """What is seen of the digit in each pixel frame."""

    cover: torch.Tensor
    """[B,T,H,W] in 0..1, how much of a pixel is digit"""
    centre: torch.Tensor
    """[B,T,2], (x, y) in pixels"""
    colour: torch.Tensor
    """[B,T,3], RGB in 0..1, of the pixels that the digit covers fully"""
    ground: torch.Tensor
    """[B,T,3], RGB in 0..1"""


def track(pixels: torch.Tensor) -> Track:
    """Separate digit and ground in every pixel frame."""
    batch, _, length, height, width = pixels.shape
    frames = pixels.clamp(-1, 1).float().transpose(1, 2).flatten(0, 1)
    cover, ground = foreground(frames)
    core = (cover > 0.95).float() + 1e-6
    colour = torch.einsum("nchw,nhw->nc", frames, core) / core.sum((1, 2))[:, None]
    return Track(
        cover=cover.reshape(batch, length, height, width),
        centre=centroids(cover).reshape(batch, length, 2),
        colour=((colour + 1) / 2).reshape(batch, length, 3),
        ground=((ground + 1) / 2).reshape(batch, length, 3),
    )


@torch.inference_mode()
def frame_log_probabilities(classifier: DigitClassifier, pixels: torch.Tensor) -> torch.Tensor:
    """Log probabilities [B,T,10] of the digits in every pixel frame."""
    batch, _, length = pixels.shape[:3]
    frames = pixels.clamp(-1, 1).float().transpose(1, 2).flatten(0, 1)
    logits = torch.cat([classifier(part) for part in frames.split(512)])
    return logits.log_softmax(-1).reshape(batch, length, 10)


def read_digits(log_probabilities_BTN: torch.Tensor) -> torch.Tensor:
    """The digit of each video [B]: the frames' mean log probability decides."""
    return log_probabilities_BTN.mean(1).argmax(-1)


def read_directions(centre_BT2: torch.Tensor) -> list[str | None]:
    """The way each digit moves over the first 20 pixel frames; None when it hardly moves or jumps.

    A jump is a single step that makes up more than half of the way: that is no motion, even if it leads to the right
    side."""
    path = centre_BT2[:, : _DIRECTION_FRAMES + 1]
    moved = path[:, -1] - path[:, 0]
    distance = moved.norm(dim=-1)
    longest = path.diff(dim=1).norm(dim=-1).amax(1)
    unit_D2 = torch.tensor(list(DIRECTIONS.values()), dtype=moved.dtype)
    best = (moved @ unit_D2.T).argmax(-1)
    moving = (distance >= _LEAST_DISPLACEMENT) & (longest <= distance / 2)
    return [_DIRECTION_NAMES[i] if ok else None for i, ok in zip(best.tolist(), moving.tolist(), strict=True)]


def speeds(centre_BT2: torch.Tensor) -> torch.Tensor:
    """Motion amplitude [B]: mean distance of the centre from one pixel frame to the next, pixels."""
    return centre_BT2.diff(dim=1).norm(dim=-1).mean(1)


def colour_errors(colour_BT3: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
    """Root mean squared difference [B,T] between the digit's colour and the prompt's, RGB in 0..1."""
    return _rms(colour_BT3, [COLOURS[scene.colour] for scene in scenes])


def ground_errors(ground_BT3: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
    """The same for the ground."""
    return _rms(ground_BT3, [GROUNDS[scene.ground] for scene in scenes])


def read_colours(colour_BT3: torch.Tensor) -> list[str]:
    """The named colour nearest to each video's mean colour."""
    table = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    nearest = torch.cdist(colour_BT3.mean(1), table).argmin(-1)
    return [_COLOUR_NAMES[i] for i in nearest.tolist()]


def saturations(colour_BT3: torch.Tensor) -> torch.Tensor:
    """Saturation [B,T] of the digit's colour: highest minus lowest channel."""
    return colour_BT3.amax(-1) - colour_BT3.amin(-1)


def chunk_slices(num_pixel_frames: int, chunk_frames: int = 3) -> list[slice]:
    """The pixel frames that each chunk of `chunk_frames` latent frames decodes to, up to the end of the video."""
    starts = []
    while (start := first_pixel_frame_of(len(starts) * chunk_frames)) < num_pixel_frames:
        starts.append(start)
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], num_pixel_frames], strict=True)]


def score_videos(
    pixels: torch.Tensor, scenes: Sequence[Scene], classifier: DigitClassifier, *, chunk_frames: int = 3
) -> dict[str, torch.Tensor]:
    """Scores of each video, keys to [B] (and [B,chunks] for those that start with `chunk_`).

    digit, direction, colour: 1 when right. colour_error, ground_error: RMS over frames of RGB in 0..1. speed: pixels
    a frame. chunk_digit, chunk_colour_error, chunk_saturation: the same chunk by chunk, for drift.

    Raises ValueError when the number of scenes is not that of the videos, or for single images, in which nothing
    moves."""
    if pixels.shape[2] < 2:
        raise ValueError(f"videos need at least 2 pixel frames to be scored, got shape {tuple(pixels.shape)}")
    if len(scenes) != pixels.shape[0]:
        raise ValueError(f"{pixels.shape[0]} videos but {len(scenes)} scenes; give the scene of each video")
    seen = track(pixels)
    readings = frame_log_probabilities(classifier, pixels)
    digits = torch.tensor([scene.digit for scene in scenes])
    colour_error = colour_errors(seen.colour, scenes)
    chunks = chunk_slices(pixels.shape[2], chunk_frames)

    def by_chunk(values_BT: torch.Tensor) -> torch.Tensor:
        return torch.stack([values_BT[:, part].mean(1) for part in chunks], dim=1)

    return {
        "digit": (read_digits(readings) == digits).float(),
        "direction": _matches(read_directions(seen.centre), [scene.direction for scene in scenes]),
        "colour": _matches(read_colours(seen.colour), [scene.colour for scene in scenes]),
        "colour_error": colour_error.mean(1),
        "ground_error": ground_errors(seen.ground, scenes).mean(1),
        "speed": speeds(seen.centre),
        "chunk_digit": torch.stack([(read_digits(readings[:, part]) == digits).float() for part in chunks], dim=1),
        "chunk_colour_error": by_chunk(colour_error),
        "chunk_saturation": by_chunk(saturations(seen.colour)),
    }


def evaluate_videos(
    sampler: Sampler,
    scenes: Sequence[Scene],
    classifier: DigitClassifier,
    *,
    seeds: Sequence[int] = (0,),
    batch: int = 20,
    chunk_frames: int = 3,
) -> dict[str, Any]:
    """Sample every scene once for each seed and score it.

    Returns {"scores": {key: mean}, "spread": {key: standard deviation over seeds, 0 for one seed}, "chance": {...},
    "videos": scenes times seeds, "seeds": [...]}; keys are those of `score_videos`, with a list over chunks for
    `chunk_`. The sampler is given prompts and a number that differs for each batch of each seed."""
    per_seed: list[dict[str, torch.Tensor]] = []
    for seed in seeds:
        parts = []
        for start in range(0, len(scenes), batch):
            part = scenes[start : start + batch]
            prompts = [random_prompt(scene, np.random.default_rng([seed, start + i])) for i, scene in enumerate(part)]
            parts.append(
                score_videos(sampler(prompts, seed * 100_003 + start), part, classifier, chunk_frames=chunk_frames)
            )
            log.info("evaluation: seed %d, %d of %d videos", seed, start + len(part), len(scenes))
        per_seed.append({key: torch.cat([p[key] for p in parts]).mean(0) for key in parts[0]})
    stacked = {key: torch.stack([scores[key] for scores in per_seed]) for key in per_seed[0]}
    return {
        "scores": {key: _plain(value.mean(0)) for key, value in stacked.items()},
        "spread": {key: _plain(value.std(0, correction=min(1, len(seeds) - 1))) for key, value in stacked.items()},
        "chance": CHANCE,
        "videos": len(scenes) * len(seeds),
        "seeds": list(seeds),
    }


def scenes_of(prompts: Sequence[str]) -> list[Scene]:
    """Scenes of prompts in the grammar, for videos whose prompts came from elsewhere. ValueError for other prompts."""
    return [parse(prompt) for prompt in prompts]


def _matches(read: Sequence[str | None], wanted: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(a == b) for a, b in zip(read, wanted, strict=True)])


def _rms(colour_BT3: torch.Tensor, wanted: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    target_B13 = torch.tensor(wanted, dtype=torch.float32)[:, None] / 255
    return (colour_BT3 - target_B13).square().mean(-1).sqrt()


def _plain(values: torch.Tensor) -> float | list[float]:
    rounded: float | list[float] = torch.round(values.double(), decimals=4).tolist()
    return rounded
