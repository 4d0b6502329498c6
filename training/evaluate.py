"""Scores of generated moving digits against their prompts, over any sampler, with their spread over seeds.

`score_videos` gives every score of every video; `evaluate_videos` samples prompts and averages; `compare` samples the
same prompts from the same noise in two ways. The scores themselves are in `scores/`. Chance levels: 10% of digits, 25%
of directions, 12.5% of colours, 3% of motions.

Shapes: B videos, M digits of all videos together, T pixel frames; pixels [B,3,T,H,W] in -1..1, clamped here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diag_core.geometry import first_pixel_frame_of

from .classifier import DigitClassifier, log_probabilities
from .data.moving_digits import draw_clips, render
from .data.paths import MovingDigitsConfig
from .data.prompts import COLOURS, DIGIT_WORDS, DIRECTIONS, GROUNDS, Scene, parse, random_prompt
from .scores.frechet import frame_features, frechet_distance
from .scores.motion import amplitudes, motion_matches, read_directions, read_paths
from .scores.optical_flow import flow_steps, flow_tracks
from .scores.paired import PairedDifference, paired_difference
from .scores.tracking import Tracks, track

log = logging.getLogger(__name__)

Sampler = Callable[[list[str], int], torch.Tensor]
"""(prompts, seed) -> pixels [B,3,T,H,W] in -1..1; equal arguments give equal noise"""

CHANCE = {"digit": 1 / len(DIGIT_WORDS), "direction": 1 / len(DIRECTIONS), "colour": 1 / len(COLOURS), "motion": 1 / 33}
DRIFTING = ("digit", "saturation", "contrast", "colour_error")

_COLOUR_NAMES = tuple(COLOURS)
_BATCHES = 100_003  # batches of one seed never share a number with those of another


def read_digits(log_probabilities_MTN: torch.Tensor) -> torch.Tensor:
    """The digit of each track [M]: the pixel frames' mean log probability decides."""
    return log_probabilities_MTN.mean(1).argmax(-1)


def colour_errors(tracks: Tracks) -> torch.Tensor:
    """Root mean squared difference [M,T] between the digits' colours and the prompts', RGB in 0..1."""
    return _rms(tracks.colour, [COLOURS[mover.colour] for mover in tracks.movers])


def ground_errors(tracks: Tracks, scenes: Sequence[Scene]) -> torch.Tensor:
    """The same for the ground, [B,T]."""
    return _rms(tracks.ground, [GROUNDS[scene.ground] for scene in scenes])


def read_colours(colour_MT3: torch.Tensor) -> list[str]:
    """The named colour nearest to each digit's mean colour."""
    table = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    nearest = torch.cdist(colour_MT3.mean(1), table).argmin(-1)
    return [_COLOUR_NAMES[i] for i in nearest.tolist()]


def saturations(colour_MT3: torch.Tensor) -> torch.Tensor:
    """Saturation [M,T] of the digits' colours: highest minus lowest channel."""
    return colour_MT3.amax(-1) - colour_MT3.amin(-1)


def contrasts(tracks: Tracks) -> torch.Tensor:
    """Contrast [M,T]: root mean squared difference between a digit's colour and the ground's."""
    return (tracks.colour - tracks.ground[tracks.video]).square().mean(-1).sqrt()


def chunk_slices(num_pixel_frames: int, chunk_frames: int = 3) -> list[slice]:
    """The pixel frames that each chunk of `chunk_frames` latent frames decodes to, up to the end of the video."""
    starts: list[int] = []
    while (start := first_pixel_frame_of(len(starts) * chunk_frames)) < num_pixel_frames:
        starts.append(start)
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], num_pixel_frames], strict=True)]


def score_videos(
    pixels: torch.Tensor, scenes: Sequence[Scene], classifier: DigitClassifier, *, chunk_frames: int = 3
) -> dict[str, torch.Tensor]:
    """Scores of each video, keys to [B] (and [B,chunks] for those that start with `chunk_`), the mean over its digits.

    digit, colour, direction, motion: 1 when right; direction is NaN where all digits circle, motion is the whole of
    what the prompt says of it. flow_direction: the direction by optical flow. path_error: distance of the tracked path
    from what the prompt allows, pixels. amplitude, flow_amplitude: pixels a frame, by centre and by optical flow.
    colour_error, ground_error: RMS over RGB in 0..1. chunk_digit, chunk_colour_error, chunk_saturation, chunk_contrast:
    chunk by chunk, for drift.

    Raises ValueError when the number of scenes is not that of the videos, for single images, in which nothing moves, or
    without OpenCV."""
    if pixels.shape[2] < 2:
        raise ValueError(f"videos need at least 2 pixel frames to be scored, got shape {tuple(pixels.shape)}")
    return _score(track(pixels, scenes), scenes, classifier, chunk_frames)


def score_frames(pixels: torch.Tensor, scenes: Sequence[Scene], classifier: DigitClassifier) -> dict[str, torch.Tensor]:
    """Of videos that may be single frames what needs no motion, keys to [B] as in `score_videos`: digit and colour.

    Raises ValueError when the number of scenes is not that of the videos."""
    tracks = track(pixels, scenes)
    return _looks(tracks, log_probabilities(classifier, tracks.cover))


def _looks(tracks: Tracks, readings: torch.Tensor) -> dict[str, torch.Tensor]:
    digits = torch.tensor([mover.digit for mover in tracks.movers])
    colours = [read == m.colour for read, m in zip(read_colours(tracks.colour), tracks.movers, strict=True)]
    return {
        "digit": tracks.per_video((read_digits(readings) == digits).float()),
        "colour": tracks.per_video(torch.tensor(colours).float()),
    }


def _score(
    tracks: Tracks, scenes: Sequence[Scene], classifier: DigitClassifier, chunk_frames: int
) -> dict[str, torch.Tensor]:
    movers, size = tracks.movers, tracks.cover.shape[-1]
    digits = torch.tensor([mover.digit for mover in movers])
    readings = log_probabilities(classifier, tracks.cover)
    colour_error = colour_errors(tracks)
    steps = flow_steps(tracks.cover)
    pairs = [len(scenes[b].movers) == 2 for b in tracks.video.tolist()]
    paths = read_paths(tracks.centre, movers, pairs=pairs, size=size)
    chunks = chunk_slices(tracks.cover.shape[1], chunk_frames)

    def by_chunk(values_MT: torch.Tensor) -> torch.Tensor:
        return tracks.per_video(torch.stack([values_MT[:, part].mean(1) for part in chunks], dim=1))

    def directions(centre_MT2: torch.Tensor) -> torch.Tensor:
        read = read_directions(centre_MT2, movers, size=size)
        asked = [mover.direction for mover in movers]
        right = [float("nan") if a is None else float(a == r) for a, r in zip(asked, read, strict=True)]
        return tracks.per_video(torch.tensor(right))

    moves = [motion_matches(near, mover) for near, mover in zip(paths.nearest, movers, strict=True)]
    chunk_right = [(read_digits(readings[:, part]) == digits).float() for part in chunks]
    return {
        **_looks(tracks, readings),
        "direction": directions(tracks.centre),
        "flow_direction": directions(flow_tracks(steps)),
        "motion": tracks.per_video(torch.tensor(moves).float()),
        "path_error": tracks.per_video(paths.error),
        "amplitude": tracks.per_video(amplitudes(tracks.centre)),
        "flow_amplitude": tracks.per_video(steps.norm(dim=-1).mean(1)),
        "colour_error": tracks.per_video(colour_error.mean(1)),
        "ground_error": ground_errors(tracks, scenes).mean(1),
        "chunk_digit": tracks.per_video(torch.stack(chunk_right, dim=1)),
        "chunk_colour_error": by_chunk(colour_error),
        "chunk_saturation": by_chunk(saturations(tracks.colour)),
        "chunk_contrast": by_chunk(contrasts(tracks)),
    }


@dataclass(frozen=True)
class Scored:
    """One seed's videos of a list of scenes."""

    scores: dict[str, torch.Tensor]
    """keys of `score_videos`, [N] or [N,chunks]"""
    features: torch.Tensor
    """[K,D] of single frames, for the Frechet distance"""


def score_sampler(
    sampler: Sampler,
    scenes: Sequence[Scene],
    classifier: DigitClassifier,
    *,
    seed: int = 0,
    batch: int = 20,
    chunk_frames: int = 3,
) -> Scored:
    """Samples every scene once, in a phrasing that the seed draws, and scores it. The sampler is given a number that
    differs for each batch of each seed."""
    scores, features = [], []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        prompts = [random_prompt(scene, np.random.default_rng([seed, start + i])) for i, scene in enumerate(part)]
        tracks = track(sampler(prompts, seed * _BATCHES + start), part)
        scores.append(_score(tracks, part, classifier, chunk_frames))
        features.append(frame_features(classifier, tracks.cover))
        log.info("evaluation: seed %d, %d of %d videos", seed, start + len(part), len(scenes))
    return Scored({key: torch.cat([s[key] for s in scores]) for key in scores[0]}, torch.cat(features))


def evaluate_videos(
    sampler: Sampler,
    scenes: Sequence[Scene],
    classifier: DigitClassifier,
    *,
    seeds: Sequence[int] = (0,),
    batch: int = 20,
    chunk_frames: int = 3,
    data: MovingDigitsConfig | None = None,
) -> dict[str, Any]:
    """Samples every scene once for each seed and scores it.

    Returns {"scores": {key: mean}, "spread": {key: standard deviation over seeds, 0 for one seed}, "chance": {...},
    "drift": {name: last chunk minus first}, "videos": scenes times seeds, "pairs": how many of them have two digits,
    "seeds": [...]}. Keys are those of `score_videos`, with a list over chunks for `chunk_`; frechet, the distance of
    frames from those of real renders of the same scenes with test scans; and digit_alone and digit_pairs, the digits
    read right in videos with one digit and with two."""
    data = data or MovingDigitsConfig()
    pairs_N = torch.tensor([len(scene.movers) == 2 for scene in scenes])
    per_seed: list[dict[str, torch.Tensor]] = []
    for seed in seeds:
        scored = score_sampler(sampler, scenes, classifier, seed=seed, batch=batch, chunk_frames=chunk_frames)
        means = {key: value.nanmean(0) for key, value in scored.scores.items()}
        for name, those_N in (("digit_alone", ~pairs_N), ("digit_pairs", pairs_N)):
            if those_N.any():
                means[name] = scored.scores["digit"][those_N].mean()
        real = _real_features(scenes, classifier, seed, data, batch)
        means["frechet"] = torch.tensor(frechet_distance(scored.features, real))
        per_seed.append(means)
    stacked = {key: torch.stack([means[key].double() for means in per_seed]) for key in per_seed[0]}
    scores = {key: value.mean(0) for key, value in stacked.items()}
    return {
        "scores": {key: _plain(value) for key, value in scores.items()},
        "spread": {key: _plain(value.std(0, correction=min(1, len(seeds) - 1))) for key, value in stacked.items()},
        "chance": CHANCE,
        "drift": {name: _plain(scores[f"chunk_{name}"][-1] - scores[f"chunk_{name}"][0]) for name in DRIFTING},
        "videos": len(scenes) * len(seeds),
        "pairs": int(pairs_N.sum()) * len(seeds),
        "seeds": list(seeds),
    }


def compare(
    sampler_a: Sampler,
    sampler_b: Sampler,
    scenes: Sequence[Scene],
    classifier: DigitClassifier,
    *,
    score: str = "digit",
    seed: int = 0,
    batch: int = 20,
    chunk_frames: int = 3,
) -> PairedDifference:
    """A score under two samplers, such as two step schedules of one model, on the same prompts and noise."""
    a, b = (
        score_sampler(sampler, scenes, classifier, seed=seed, batch=batch, chunk_frames=chunk_frames).scores[score]
        for sampler in (sampler_a, sampler_b)
    )
    known = ~(a.isnan() | b.isnan())
    return paired_difference(a[known], b[known])


def motion_kept(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """A student's motion amplitude over its teacher's, by centre and by optical flow, of two `evaluate_videos`; NaN
    where the teacher's videos stand still."""
    own, whole = student["scores"], teacher["scores"]
    return {name: own[name] / (whole[name] or float("nan")) for name in ("amplitude", "flow_amplitude")}


def real_sampler(
    seed: int, data: MovingDigitsConfig, *, reconstruct: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels
) -> Sampler:
    """Renders of test scans instead of samples: what a perfect model would score. `reconstruct` shows them as an
    autoencoder does."""

    def sample(prompts: list[str], number: int) -> torch.Tensor:
        return reconstruct(_render(scenes_of(prompts), seed, number, data))

    return sample


def scenes_of(prompts: Sequence[str]) -> list[Scene]:
    """Scenes of prompts in the grammar, for videos whose prompts came from elsewhere. ValueError for other prompts."""
    return [parse(prompt) for prompt in prompts]


def _real_features(
    scenes: Sequence[Scene], classifier: DigitClassifier, seed: int, data: MovingDigitsConfig, batch: int
) -> torch.Tensor:
    features = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        pixels = _render(part, seed, start, data)
        features.append(frame_features(classifier, track(pixels, part).cover))
    return torch.cat(features)


def _render(scenes: Sequence[Scene], seed: int, first: int, data: MovingDigitsConfig) -> torch.Tensor:
    indices = range(first, first + len(scenes))
    return render(draw_clips(indices, split="test", seed=seed, config=data, scenes=scenes), data)


def _rms(colour_NT3: torch.Tensor, wanted: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    target_N13 = torch.tensor(wanted, dtype=torch.float32)[:, None] / 255
    return (colour_NT3 - target_N13).square().mean(-1).sqrt()


def _plain(values: torch.Tensor) -> float | list[float]:
    rounded: float | list[float] = torch.round(values.double(), decimals=4).tolist()
    return rounded
