from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.moving_digits import draw_clips, render
from training.data.paths import MovingDigitsConfig
from training.data.prompts import COLOURS, Scene, parse, sample_scene
from training.scores.foreground import centroids, foreground
from training.scores.tracking import Tracks, split_by_colour, track

CONFIG = MovingDigitsConfig()
FRAMES = np.arange(0, 81, 8)


def pairs(count: int) -> list[Scene]:
    rng = np.random.default_rng(3)
    return [sample_scene(rng, held_out=None, pairs=1) for _ in range(count)]


def test_two_digits_are_found_by_their_colours() -> None:
    scenes = pairs(12)
    clips = draw_clips(range(12), split="test", seed=0, config=CONFIG, scenes=scenes)
    seen = track(render(clips, CONFIG, frames=FRAMES), scenes)
    assert seen.cover.shape == (24, len(FRAMES), 64, 64)
    assert seen.video.tolist() == [b for b in range(12) for _ in (0, 1)]
    # Alone on the ground, each would be seen at the same place.
    for m, mover in enumerate(seen.movers):
        clip = clips[m // 2]
        alone = replace(clip, scene=replace(clip.scene, movers=(mover,)), bodies=(clip.bodies[m % 2],))
        cover, _ = foreground(render([alone], CONFIG, frames=FRAMES)[0].transpose(0, 1))
        other = seen.cover[m + 1 - 2 * (m % 2)]
        free = (cover * other).sum((1, 2)) == 0  # frames in which they do not touch
        assert torch.allclose(seen.centre[m][free], centroids(cover)[free], atol=0.5)
        wanted = torch.tensor(COLOURS[mover.colour]) / 255
        assert (seen.colour[m][free] - wanted).abs().max() < 0.06
    assert seen.per_video(torch.arange(24.0)).tolist() == [2 * b + 0.5 for b in range(12)]


def test_a_colour_that_is_a_little_off_has_no_ghost() -> None:
    scene = parse("a white 3 circles; a cyan 7 circles, on a navy ground")
    clip = draw_clips([0], split="test", seed=0, config=CONFIG, scenes=[scene])
    pixels = render(clip, CONFIG, frames=np.zeros(1))
    exact = track(pixels, [scene])
    off = track(0.93 * pixels - 0.04, [scene])
    assert torch.allclose(exact.centre, off.centre, atol=0.3)
    assert (exact.cover.sum((2, 3)) - off.cover.sum((2, 3))).abs().max() < 0.2 * exact.cover.sum((2, 3)).min()


def test_a_missing_digit_is_not_seen() -> None:
    scene = parse("a red 3 circles; a cyan 7 circles, on a navy ground")
    clip = draw_clips([0], split="test", seed=0, config=CONFIG, scenes=[parse("a red 3 circles, on a navy ground")])
    seen = track(render(clip, CONFIG, frames=FRAMES), [scene])
    assert seen.cover[0].sum() > 100
    assert seen.cover[1].sum() < 0.02 * seen.cover[0].sum()
    torch.testing.assert_close(seen.colour[1], seen.ground[0])


def test_mixtures_are_split_exactly() -> None:
    movers = parse("a red 3 circles; a cyan 7 circles").movers
    ground = torch.tensor([[-0.9, -0.9, -0.5]])
    red, cyan = (torch.tensor(COLOURS[m.colour]) / 127.5 - 1 for m in movers)
    shares = torch.tensor([[0, 0], [1, 0], [0, 1], [0.5, 0], [0, 0.5], [0.5, 0.5]])
    mixed = ground + shares[:, :1] * (red - ground) + shares[:, 1:] * (cyan - ground)
    covers = split_by_colour(mixed.T.reshape(1, 3, 1, 6), ground, movers)
    expected = ((shares - 0.2) / 0.7).clamp(0, 1)
    torch.testing.assert_close(torch.stack([c.flatten() for c in covers], 1), expected, atol=1e-4, rtol=0)


def test_unknown_values_are_left_out_of_a_videos_mean() -> None:
    tracks = Tracks((), torch.tensor([0, 0, 1]), torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(2, 1, 3))
    nan = float("nan")
    assert tracks.per_video(torch.tensor([nan, 4.0, 5.0])).tolist() == [4, 5]
    assert tracks.per_video(torch.tensor([1.0, 4.0, nan]))[1].isnan()


def test_scenes_must_match_videos() -> None:
    with pytest.raises(ValueError, match="2 videos but 1 scenes"):
        track(torch.zeros(2, 3, 2, 64, 64), pairs(1))
