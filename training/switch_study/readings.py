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
    old_digit: Tensor
    """[P,K], 1 where the digit is still that of before the switch; NaN where that was not asked"""
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
    before: Sequence[Scene] | None = None,
    data: MovingDigitsConfig | None = None,
) -> Readings:
    """Readings of videos against `scenes` of one digit each, from chunk `first_chunk` on.

    Args:
        since: the chunk from which the scene holds, where that is earlier: a digit may have reached its edge by then.
        before: the scenes of before the switch, to see how long their digits stay.
    """
    data = data or MovingDigitsConfig()
    since = first_chunk if since is None else since
    tracks = track(pixels, scenes)
    parts = chunk_slices(pixels.shape[2], chunk_frames)
    shown_PK = _digits(tracks, classifier, parts[first_chunk:])
    right = {
        "digit": _are(shown_PK, scenes),
        "colour": _colours_are(tracks, parts[first_chunk:]),
        "direction": directions_followed(
            tracks.centre, tracks.movers, parts[since:], margin=data.digit_size / 2, size=data.size
        )[:, first_chunk - since :],
    }
    right["all"] = torch.stack(list(right.values())).prod(0)
    start = first_pixel_frame_of(first_chunk * chunk_frames)
    end = parts[min(first_chunk + 1, len(parts) - 1)].stop - 1
    return Readings(
        right=right,
        old_digit=torch.full(shown_PK.shape, torch.nan) if before is None else _are(shown_PK, before),
        jump=jumps(tracks.centre, start),
        largest_step=largest_steps(tracks.centre, start, end),
    )


def _digits(tracks: Tracks, classifier: DigitClassifier, parts: Sequence[slice]) -> Tensor:
    readings = log_probabilities(classifier, tracks.cover)
    return torch.stack([read_digits(readings[:, part]) for part in parts], dim=1)


def _are(digits_PK: Tensor, scenes: Sequence[Scene]) -> Tensor:
    return (digits_PK == torch.tensor([scene.movers[0].digit for scene in scenes])[:, None]).float()


def _colours_are(tracks: Tracks, parts: Sequence[slice]) -> Tensor:
    asked = [mover.colour for mover in tracks.movers]
    shown_KP = [read_colours(tracks.colour[:, part]) for part in parts]
    return torch.tensor([[float(a == b) for a, b in zip(asked, shown_P, strict=True)] for shown_P in shown_KP]).T


def joined(readings: Sequence[Readings]) -> Readings:
    """Readings of batches as those of all pairs."""
    return Readings(
        right={name: torch.cat([r.right[name] for r in readings]) for name in readings[0].right},
        old_digit=torch.cat([r.old_digit for r in readings]),
        jump=torch.cat([r.jump for r in readings]),
        largest_step=torch.cat([r.largest_step for r in readings]),
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
    result["old_digit"] = [bootstrap_mean(kept_P).to_dict() for kept_P in readings.old_digit.T]
    result["jump"] = bootstrap_mean(readings.jump).to_dict()
    result["jump_over_control"] = bootstrap_mean(readings.jump - control.jump).to_dict()
    result["largest_step"] = bootstrap_mean(readings.largest_step).to_dict()
    result["teleports"] = bootstrap_mean((readings.largest_step >= TELEPORT).float()).to_dict()
    return result


def differences(readings: dict[str, Readings]) -> dict[str, Any]:
    """Every later variant minus every earlier one, pair by pair: of each aspect, the first chunk after the switch and
    the mean over all of them; and the jump. JSON values."""
    return {f"{b} minus {a}": _difference(readings[b], readings[a]) for a, b in itertools.combinations(readings, 2)}


def _difference(b: Readings, a: Readings) -> dict[str, Any]:
    apart = {aspect: b.right[aspect] - a.right[aspect] for aspect in a.right}
    return {
        "first_chunk": {aspect: bootstrap_mean(apart_PK[:, 0]).to_dict() for aspect, apart_PK in apart.items()},
        "mean_of_chunks": {aspect: bootstrap_mean(apart_PK.mean(1)).to_dict() for aspect, apart_PK in apart.items()},
        "jump": bootstrap_mean(b.jump - a.jump).to_dict(),
    }
