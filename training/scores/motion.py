"""How digits move: direction, amplitude, and the tracked path against what the prompt allows.

Shapes: M digits, T pixel frames; tracks [M,T,2] as (x, y) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..data.paths import MovingDigitsConfig, draw_body, path
from ..data.prompts import DIRECTIONS, MOTIONS, SPEEDS, Mover, across

_DIRECTION_NAMES = tuple(DIRECTIONS)
# A digit starts up to 5 pixels into its path and takes at least 20 pixel frames to the edge, so none has bounced by
# then. The earliest corner of a fast one comes after 9.
_STRAIGHT_FRAMES = 20
_STRAIGHT_FRAMES_BEFORE_CORNER = 9
# In frames of 64x64, pixels.
_LEAST_DISPLACEMENT = 3.0
_LARGEST_ERROR = 3.0
_PATHS_EACH = 48


def straight_frames(mover: Mover) -> int:
    """Pixel frames over which a digit that moves as the prompt says goes straight, whatever the prompt leaves open."""
    return _STRAIGHT_FRAMES_BEFORE_CORNER if (mover.motion, mover.speed) == ("turns", "fast") else _STRAIGHT_FRAMES


def read_directions(centre_MT2: torch.Tensor, movers: Sequence[Mover], *, size: int = 64) -> list[str | None]:
    """The way each digit moves over its first `straight_frames`; None when it hardly moves or jumps.

    A jump is a single step that makes up more than half of the way: that is no motion, even if it leads to the right
    side. `size` is the height of the frames."""
    unit_D2 = torch.tensor(list(DIRECTIONS.values()), dtype=centre_MT2.dtype)
    read: list[str | None] = []
    for centre_T2, mover in zip(centre_MT2, movers, strict=True):
        way = centre_T2[: straight_frames(mover) + 1]
        moved = way[-1] - way[0]
        distance, longest = moved.norm(), way.diff(dim=0).norm(dim=-1).max()
        moving = distance >= _LEAST_DISPLACEMENT * size / 64 and longest <= distance / 2
        read.append(_DIRECTION_NAMES[int((unit_D2 @ moved).argmax())] if moving else None)
    return read


def amplitudes(centre_MT2: torch.Tensor) -> torch.Tensor:
    """Motion amplitude [M]: mean distance of the centre from one pixel frame to the next, pixels."""
    return centre_MT2.diff(dim=1).norm(dim=-1).mean(1)


@dataclass(frozen=True)
class PathReading:
    """What a tracked path is most like."""

    error: torch.Tensor
    """[M], RMS distance in pixels to the nearest path that the prompt allows, wherever in the frame"""
    nearest: list[Mover | None]
    """the motion of the nearest of all paths; None when none is near"""


def read_paths(
    centre_MT2: torch.Tensor, movers: Sequence[Mover], *, pairs: Sequence[bool], size: int = 64
) -> PathReading:
    """Compares tracks with some fifty drawn paths of each of the 33 motions of the grammar.

    Where in the frame a path lies is left out: tracks and paths are compared around their means, so that few paths
    cover what a prompt leaves open.

    Args:
        pairs: whether the digit is one of two, which are smaller and so have more room.
        size: height of the frames.
    """
    error, nearest = torch.empty(len(movers)), []
    for m, mover in enumerate(movers):
        motions, paths_PT2 = _path_table(size, centre_MT2.shape[1], pairs[m])
        track_T2 = centre_MT2[m] - centre_MT2[m].mean(0)
        distance_P = (paths_PT2 - track_T2).square().sum(-1).mean(1).sqrt()
        allowed = torch.tensor([_same_motion(motion, mover) for motion in motions])
        error[m] = distance_P[allowed].min()
        best = int(distance_P.argmin())
        nearest.append(motions[best] if distance_P[best] <= _LARGEST_ERROR * size / 64 else None)
    return PathReading(error, nearest)


def motion_matches(nearest: Mover | None, mover: Mover) -> bool:
    """Whether a path was read as the motion that the prompt asks for, in all that it says."""
    return nearest is not None and _same_motion(nearest, mover)


def _same_motion(a: Mover, b: Mover) -> bool:
    return (a.motion, a.direction, a.speed, a.turn) == (b.motion, b.direction, b.speed, b.turn)


def _all_motions() -> list[Mover]:
    movers = [Mover(digit=0, colour="white", motion="circles")]
    for motion in MOTIONS[:3]:
        for direction in DIRECTIONS:
            for speed in SPEEDS:
                for turn in across(direction) if motion == "turns" else (None,):
                    movers.append(
                        Mover(digit=0, colour="white", motion=motion, direction=direction, speed=speed, turn=turn)
                    )
    return movers


@lru_cache(maxsize=8)
def _path_table(size: int, length: int, pair: bool) -> tuple[list[Mover], torch.Tensor]:
    """Motions and centred paths [P,T,2] to compare with, the same on every call."""
    config = MovingDigitsConfig.at(size)
    rng = np.random.default_rng(0)
    motions, paths = [], []
    for mover in _all_motions():
        # A circle leaves the most open: where on it a digit starts.
        for _ in range(_PATHS_EACH * (6 if mover.motion == "circles" else 1)):
            body = draw_body(rng, mover, 0, config.pair_size if pair else config.digit_size, config, augmented=False)
            motions.append(mover)
            paths.append(path(mover, body, np.arange(length), config))
    table = torch.from_numpy(np.stack(paths)).float()
    return motions, table - table.mean(1, keepdim=True)
