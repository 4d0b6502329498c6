"""Paths across a prompt switch whose answers are known."""

from __future__ import annotations

import pytest
import torch

from training.data.prompts import Mover
from training.scores.following import (
    chunks_until_right,
    directions_followed,
    jumps,
    largest_steps,
    room_ahead,
)

MARGIN = 14.0
PARTS = [slice(33, 45), slice(45, 57), slice(57, 69), slice(69, 81)]
DOWN = Mover(digit=3, colour="red", motion="stops", direction="down", speed="fast")
BOUNCING = Mover(digit=3, colour="red", motion="bounces", direction="down", speed="fast")


def straight(velocity: tuple[float, float], frames: int, start: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(start) + torch.arange(1, frames + 1)[:, None] * torch.tensor(velocity)


def track_of(*pieces: tuple[tuple[float, float], int], start: tuple[float, float] = (16.0, 20.0)) -> torch.Tensor:
    """A centre [1,T,2] that moves at each velocity for so many frames."""
    parts = [torch.tensor([start])]
    for velocity, frames in pieces:
        parts.append(straight(velocity, frames, tuple(parts[-1][-1].tolist())))
    return torch.cat(parts)[None]


def followed(centre: torch.Tensor, mover: Mover) -> list[float]:
    return directions_followed(centre, [mover], PARTS, margin=MARGIN)[0].tolist()


BEFORE = ((0.6, 0.0), 32)


def test_down_and_at_rest_at_the_edge_is_right() -> None:
    centre = track_of(BEFORE, ((0.0, 1.2), 25), ((0.0, 0.0), 23))
    assert followed(centre, DOWN) == [1, 1, 1, 1]


def test_coming_back_is_right_only_if_it_bounces() -> None:
    centre = track_of(BEFORE, ((0.0, 1.25), 24), ((0.0, -1.25), 24))
    assert followed(centre, BOUNCING) == [1, 1, 1, 1]
    assert followed(centre, DOWN) == [1, 1, 0, 0]


def test_turning_a_chunk_late() -> None:
    late = track_of(BEFORE, ((0.6, 0.0), 12), ((0.0, 0.8), 36))
    assert followed(late, DOWN) == [0, 1, 1, 1]


def test_going_on_as_before_or_resting_short_of_the_edge_is_wrong() -> None:
    assert followed(track_of(BEFORE, ((0.3, 0.0), 48)), DOWN) == [0, 0, 0, 0]
    assert followed(track_of(BEFORE, ((0.0, 0.0), 48)), DOWN) == [0, 0, 0, 0]
    assert followed(track_of(BEFORE, ((0.0, 0.6), 12), ((0.0, 0.0), 36)), DOWN) == [1, 0, 0, 0]


def test_sliding_along_the_edge_is_wrong() -> None:
    centre = track_of(BEFORE, ((0.0, 1.25), 24), ((0.6, 0.0), 24))
    assert followed(centre, BOUNCING) == followed(centre, DOWN) == [1, 1, 0, 0]


def test_a_jump_to_the_edge_is_no_motion() -> None:
    jump = track_of(BEFORE, ((0.0, 0.0), 6), ((0.0, 30.0), 1), ((0.0, 0.0), 41))
    assert followed(jump, DOWN) == [0, 0, 0, 0]


def test_without_room_it_cannot_be_told() -> None:
    low = track_of(BEFORE, ((0.0, 0.0), 48), start=(16.0, 45.0))
    assert all(value != value for value in followed(low, DOWN))
    assert room_ahead(low[:, 0], [DOWN], margin=MARGIN).item() == pytest.approx(5)
    up, left, right = (
        Mover(digit=3, colour="red", motion="stops", direction=d, speed="fast") for d in ("up", "left", "right")
    )
    for mover, room in ((up, 31), (left, 2), (right, 34)):
        assert room_ahead(low[:, 0], [mover], margin=MARGIN).item() == pytest.approx(room)


def test_larger_frames_are_measured_in_their_own_pixels() -> None:
    centre = track_of(BEFORE, ((0.0, 1.25), 24), ((0.0, 0.0), 24))
    twice = directions_followed(2 * centre, [DOWN], PARTS, margin=2 * MARGIN, size=128)
    assert twice[0].tolist() == [1, 1, 1, 1]


def test_the_chunk_from_which_on_all_is_right() -> None:
    right = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0], [torch.nan] * 3])
    assert chunks_until_right(right)[:5].tolist() == [1, 2, 3, torch.inf, torch.inf]
    assert chunks_until_right(right)[5].isnan()


def test_jumps_and_the_largest_step() -> None:
    centre = track_of(((1.0, 0.0), 9), ((3.0, 4.0), 1), ((1.0, 0.0), 5), ((0.0, 12.0), 1), ((0.0, 0.0), 3))
    assert jumps(centre, 10).item() == pytest.approx(5)
    assert jumps(centre, 9).item() == pytest.approx(1)
    assert largest_steps(centre, 10, 15).item() == pytest.approx(5)
    assert largest_steps(centre, 10, 16).item() == pytest.approx(12)
