"""How soon a video follows a new prompt: digit, colour and direction chunk by chunk, and the jump at the switch.

Of videos with one digit. Shapes: P videos, T pixel frames, K chunks; tracks [P,T,2] as (x, y) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.prompts import DIRECTIONS, Mover
from .motion import read_directions

# In frames of 64x64, pixels.
_LEAST_DISPLACEMENT = 3.0
_AT_EDGE = 5.0  # a tracked centre of mass lies up to so far from the centre of the digit's square
LEAST_ROOM = 10.0
"""to the edge that a digit is to move to: with less, moving there and turning back are hardly told apart"""
TELEPORT = 6.0
"""a step from one pixel frame to the next that no motion makes: a fast digit takes 1.5"""


def room_ahead(centre_P2: torch.Tensor, movers: Sequence[Mover], *, margin: float, size: int = 64) -> torch.Tensor:
    """How far [P] each digit may go its mover's way before its edge, pixels.

    Args:
        margin: closest distance of a digit's centre to the edge.
        size: height of the frames.
    """
    return torch.stack([_room(c, m, margin, size) for c, m in zip(centre_P2, movers, strict=True)])


def directions_followed(
    centre_PT2: torch.Tensor, movers: Sequence[Mover], parts: Sequence[slice], *, margin: float, size: int = 64
) -> torch.Tensor:
    """Whether each digit moves as its mover says in each of the consecutive pixel-frame ranges `parts`: [P,K] of 1, 0.

    It does when it moves the mover's way until it comes nearest to the edge there. Once it has moved that way and has
    been at the edge, resting (for "stops") or anything but moving sideways (for "bounces") is right too. NaN where the
    way is shorter than `LEAST_ROOM` at the beginning."""
    scale = size / 64
    right = torch.zeros(len(movers), len(parts))
    for p, mover in enumerate(movers):
        centre_T2 = centre_PT2[p]
        room_T = _room(centre_T2, mover, margin, size)
        if room_T[max(0, parts[0].start - 1)] < LEAST_ROOM * scale:
            right[p] = torch.nan
            continue
        moved = arrived = False
        for k, part in enumerate(parts):
            nearest = part.start + int(room_T[part].argmin()) + 1
            arrived = arrived or bool(room_T[part].min() <= _AT_EDGE * scale)
            follows = _read(centre_T2[part.start : nearest], mover, size) == mover.direction
            if not follows and moved and arrived:
                follows = _keeps_to_the_edge(centre_T2[part], mover, scale)
            moved = moved or follows
            right[p, k] = float(follows)
    return right


def chunks_until_right(right_PK: torch.Tensor) -> torch.Tensor:
    """The chunk [P], counted from 1, from which on a video is right to its end; infinite when its last one is wrong,
    NaN where a chunk is NaN."""
    wrong = right_PK == 0
    number = torch.arange(1, right_PK.shape[1] + 1)
    after_last_wrong = (wrong * number).amax(1).float() + 1
    after_last_wrong[wrong[:, -1]] = torch.inf
    after_last_wrong[right_PK.isnan().any(1)] = torch.nan
    return after_last_wrong


def jumps(centre_PT2: torch.Tensor, first_frame: int) -> torch.Tensor:
    """How far [P] the centre moves from the pixel frame before `first_frame` to it, pixels."""
    return (centre_PT2[:, first_frame] - centre_PT2[:, first_frame - 1]).norm(dim=-1)


def largest_steps(centre_PT2: torch.Tensor, first_frame: int, last_frame: int) -> torch.Tensor:
    """The largest step [P] of the centre from any pixel frame to the next, from the one into `first_frame` to the one
    into `last_frame`, pixels."""
    return centre_PT2[:, first_frame - 1 : last_frame + 1].diff(dim=1).norm(dim=-1).amax(1)


def _room(centre_X2: torch.Tensor, mover: Mover, margin: float, size: int) -> torch.Tensor:
    assert mover.direction is not None, "a circling digit has no way ahead"
    x, y = DIRECTIONS[mover.direction]
    edge = (size if x + y > 0 else 0) * (x + y)
    return edge - margin - (x * centre_X2[..., 0] + y * centre_X2[..., 1])


def _read(centre_T2: torch.Tensor, mover: Mover, size: int) -> str | None:
    return read_directions(centre_T2[None], [mover], size=size)[0] if len(centre_T2) > 1 else None


def _keeps_to_the_edge(centre_T2: torch.Tensor, mover: Mover, scale: float) -> bool:
    """Rests, or for a bouncing digit does not go sideways; jumps are neither."""
    step_T2 = centre_T2.diff(dim=0)
    if step_T2.norm(dim=-1).max() >= TELEPORT * scale:
        return False
    assert mover.direction is not None
    ahead_2 = torch.tensor(DIRECTIONS[mover.direction], dtype=centre_T2.dtype)
    moved_2 = centre_T2[-1] - centre_T2[0]
    along = ahead_2 @ moved_2
    aside = (moved_2 - along * ahead_2).norm()
    # The last of the way there is no fault; nor, for a digit that bounces, is the way back.
    back = (-along).clamp_min(0) if mover.motion == "stops" else along.new_zeros(())
    return bool(torch.hypot(aside, back) < _LEAST_DISPLACEMENT * scale)
