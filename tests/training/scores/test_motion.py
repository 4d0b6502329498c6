from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data.moving_digits import centres, draw_clips
from training.data.paths import MovingDigitsConfig
from training.data.prompts import Mover, Scene, sample_scene
from training.scores.motion import amplitudes, motion_matches, read_directions, read_paths

CONFIG = MovingDigitsConfig()


def mover(motion: str = "stops", **changes: object) -> Mover:
    return Mover(**{"digit": 1, "colour": "red", "motion": motion, "direction": "right", "speed": "fast", **changes})


def test_teleporting_is_no_direction_and_no_motion() -> None:
    frames = torch.arange(81.0)
    jump = torch.stack([torch.where(frames < 10, 15.0, 45.0), torch.full_like(frames, 30)], -1)
    walk = torch.stack([(15 + 1.4 * frames).clamp(max=50), torch.full_like(frames, 30)], -1)
    back = walk * torch.tensor([-1.0, 1.0])
    wander = 32 + 15 * torch.randn(81, 2, generator=torch.Generator().manual_seed(1))
    tracks = torch.stack([jump, walk, back, wander])
    asked = [mover()] * 4
    assert read_directions(tracks, asked) == [None, "right", "left", None]
    reading = read_paths(tracks, asked, pairs=[False] * 4)
    assert [motion_matches(near, mover()) for near in reading.nearest] == [False, True, False, False]
    assert reading.nearest[0] is None and reading.nearest[3] is None
    assert reading.error[1] < 0.7 < 3 < reading.error[[0, 2, 3]].min()
    assert amplitudes(wander[None]) > 10 * amplitudes(walk[None])
    torch.testing.assert_close(amplitudes(walk[None])[0], torch.tensor(35 / 80))


def test_a_frozen_digit_moves_nowhere() -> None:
    still = torch.full((1, 81, 2), 30.0)
    assert read_directions(still, [mover()]) == [None]
    reading = read_paths(still, [mover()], pairs=[False])
    assert reading.nearest == [None]
    assert reading.error[0] > 5
    assert amplitudes(still)[0] == 0


@pytest.mark.parametrize("size", [64, 128])
def test_real_paths_are_read_as_what_they_are(size: int) -> None:
    config = MovingDigitsConfig.at(size)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, held_out=None, pairs=0.3) for _ in range(60)]
    clips = draw_clips(range(60), split="test", seed=0, config=config, scenes=scenes)
    tracks = torch.from_numpy(centres(clips, np.arange(81), config)).float()
    movers = [m for scene in scenes for m in scene.movers]
    pairs = [len(scene.movers) == 2 for scene in scenes for _ in scene.movers]
    reading = read_paths(tracks, movers, pairs=pairs, size=size)
    matches = [motion_matches(near, m) for near, m in zip(reading.nearest, movers, strict=True)]
    assert np.mean(matches) > 0.95
    assert reading.error.max() < 2.5 * size / 64
    read = read_directions(tracks, movers, size=size)
    assert all(r == m.direction for r, m in zip(read, movers, strict=True) if m.direction is not None)


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (mover(), mover("bounces")),
        (mover(), mover(speed="slowly")),
        (mover("turns", turn="up"), mover("turns", turn="down")),
        (mover("turns", turn="up"), mover()),
        (Mover(digit=1, colour="red", motion="circles"), mover("bounces")),
    ],
)
def test_another_motion_is_told_from_the_one_asked_for(asked: Mover, shown: Mover) -> None:
    clips = draw_clips(range(5), split="test", seed=0, config=CONFIG, scenes=[Scene(movers=(shown,))] * 5)
    reading = read_paths(
        torch.from_numpy(centres(clips, np.arange(81), CONFIG)).float(), [asked] * 5, pairs=[False] * 5
    )
    assert not any(motion_matches(near, asked) for near in reading.nearest)
    assert all(motion_matches(near, shown) for near in reading.nearest)


def test_where_in_the_frame_it_happens_does_not_matter() -> None:
    clips = draw_clips(range(5), split="test", seed=1, config=CONFIG, held_out=None)
    tracks = torch.from_numpy(centres(clips, np.arange(81), CONFIG)).float()
    movers = [m for clip in clips for m in clip.scene.movers]
    pairs = [len(clip.scene.movers) == 2 for clip in clips for _ in clip.scene.movers]
    here, there = (read_paths(tracks + torch.tensor(shift), movers, pairs=pairs) for shift in ([0.0, 0.0], [5.0, -3.0]))
    torch.testing.assert_close(here.error, there.error, atol=1e-4, rtol=0)
