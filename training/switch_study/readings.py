"""What is read of videos with a prompt switch, and what it comes to over all pairs.

Shapes: P pairs, T pixel frames, K chunks from the switch on; pixels [P,3,T,H,W] in -1..1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diag_core.geometry import first_pixel_frame_of

from ..classifier import DigitClassifier, log_probabilities
from ..data.paths import MovingDigitsConfig
from ..data.prompts import Scene
from ..evaluate import chunk_slices, read_colours, read_digits
from ..scores.following import TELEPORT, chunks_until_right, directions_followed, jumps, largest_steps
from ..scores.interval import bootstrap_mean, bootstrap_median
from ..scores.tracking import Tracks, track


@dataclass(frozen=True)
class Readings:
    """What is read of the videos of one variant."""

    right: dict[str, Tensor]
    """aspect -> [P,K], 1 where chunk k after the switch is as the prompt says, NaN where it cannot be told"""
    jump: Tensor
    """[P], pixels from the last pixel frame before the switch to the first after it"""
    largest_step: Tensor
    """[P], the largest such step up to the end of the second chunk after the switch"""


def read_videos(
    pixels: Tensor,
    scenes: Sequence[Scene],
    classifier: DigitClassifier,
    *,
    first_chunk: int,
    chunk_frames: int = 3,
    since: int | None = None,
    data: MovingDigitsConfig | None = None,
) -> Readings:
    """Readings of videos against `scenes` of one digit each, from chunk `first_chunk` on.

    Args:
        since: the chunk from which the scene holds, where that is earlier: a digit may have reached its edge by then.
    """
    data = data or MovingDigitsConfig()
    since = first_chunk if since is None else since
    tracks = track(pixels, scenes)
    parts = chunk_slices(pixels.shape[2], chunk_frames)
    right = {
        **_looks(tracks, classifier, parts[first_chunk:]),
        "direction": directions_followed(
            tracks.centre, tracks.movers, parts[since:], margin=data.digit_size / 2, size=data.size
        )[:, first_chunk - since :],
    }
    right["all"] = torch.stack(list(right.values())).prod(0)
    start = first_pixel_frame_of(first_chunk * chunk_frames)
    end = parts[min(first_chunk + 1, len(parts) - 1)].stop - 1
    return Readings(right, jumps(tracks.centre, start), largest_steps(tracks.centre, start, end))


def _looks(tracks: Tracks, classifier: DigitClassifier, parts: Sequence[slice]) -> dict[str, Tensor]:
    readings = log_probabilities(classifier, tracks.cover)
    digits = torch.tensor([mover.digit for mover in tracks.movers])
    colours = [mover.colour for mover in tracks.movers]
    digit = [(read_digits(readings[:, part]) == digits).float() for part in parts]
    colour = [
        torch.tensor([float(a == b) for a, b in zip(read_colours(tracks.colour[:, part]), colours, strict=True)])
        for part in parts
    ]
    return {"digit": torch.stack(digit, dim=1), "colour": torch.stack(colour, dim=1)}


def joined(readings: Sequence[Readings]) -> Readings:
    """Readings of batches as those of all pairs."""
    return Readings(
        {name: torch.cat([r.right[name] for r in readings]) for name in readings[0].right},
        torch.cat([r.jump for r in readings]),
        torch.cat([r.largest_step for r in readings]),
    )


def summary(readings: Readings, control: Readings) -> dict[str, Any]:
    """Means over pairs with their 95% bootstrap intervals; JSON values."""
    result: dict[str, Any] = {"share": {}, "chunks_until_right": {}}
    for name, right_PK in readings.right.items():
        until_P = chunks_until_right(right_PK)
        known_P = until_P[~until_P.isnan()]
        result["share"][name] = [bootstrap_mean(right_P).to_dict() for right_P in right_PK.T]
        result["chunks_until_right"][name] = {
            "median": bootstrap_median(until_P).to_dict(),  # null: never
            "never": bootstrap_mean(known_P.isinf().float()).to_dict(),
        }
    result["jump"] = bootstrap_mean(readings.jump).to_dict()
    result["jump_over_control"] = bootstrap_mean(readings.jump - control.jump).to_dict()
    result["largest_step"] = bootstrap_mean(readings.largest_step).to_dict()
    result["teleports"] = bootstrap_mean((readings.largest_step >= TELEPORT).float()).to_dict()
    return result


def differences(readings: dict[str, Readings]) -> dict[str, Any]:
    """Every later variant minus every earlier one, pair by pair: the mean over the chunks after the switch of each
    aspect, and the jump; JSON values."""
    return {
        f"{b} minus {a}": {
            **{
                aspect: bootstrap_mean((readings[b].right[aspect] - readings[a].right[aspect]).mean(1)).to_dict()
                for aspect in readings[a].right
            },
            "jump": bootstrap_mean(readings[b].jump - readings[a].jump).to_dict(),
        }
        for a, b in itertools.combinations(readings, 2)
    }
