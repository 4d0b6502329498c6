from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from training.data.moving_digits import centres, draw_clip, draw_clips, render, scan_label, scans_of
from training.data.paths import MovingDigitsConfig
from training.data.prompts import COLOURS, DIRECTIONS, GROUNDS, Mover, Scene, parse

CONFIG = MovingDigitsConfig()
PAIR = parse("a red 3 moves right, fast, and bounces; a cyan 7 circles, on a navy ground")


def scene(ground: str = "navy", **changes: object) -> Scene:
    values = {"digit": 3, "colour": "red", "direction": "right", "speed": "fast", "motion": "stops"}
    return Scene(movers=(Mover(**{**values, **changes}),), ground=ground)  # type: ignore[arg-type]


def test_scans_are_split_before_rendering() -> None:
    for digit in range(10):
        parts = [set(scans_of(split, digit)) for split in ("train", "validation", "test")]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        assert all(len(part) >= 17 for part in parts)
        assert {scan_label(i) for part in parts for i in part} == {digit}
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        scans_of("dev", 0)


def test_clips_use_the_scans_of_their_split_and_digit() -> None:
    for split in ("train", "test"):
        for clip in draw_clips(range(40), split=split, seed=0, config=CONFIG):
            size = CONFIG.digit_size if len(clip.bodies) == 1 else CONFIG.pair_size
            for mover, body in zip(clip.scene.movers, clip.bodies, strict=True):
                assert body.scan in scans_of(split, mover.digit)
                assert (body.side, body.rotation) == (size, 0) or split == "train"


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    batch = draw_clips(range(4), split="train", seed=3, config=CONFIG)
    assert draw_clip(2, split="train", seed=3, config=CONFIG) == batch[2]
    assert draw_clip(2, split="train", seed=4, config=CONFIG) != batch[2]
    together = render(batch, CONFIG, frames=np.array([5, 60]))
    torch.testing.assert_close(render(batch[2:3], CONFIG, frames=np.array([5, 60])), together[2:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(render(batch[2:3], CONFIG)[:, :, [5, 60]], together[2:3], atol=1e-5, rtol=0)


def test_windows_differ_by_clip() -> None:
    clips = draw_clips(range(2), split="train", seed=0, config=CONFIG)
    windows = render(clips, CONFIG, frames=np.array([[0, 1], [40, 41]]))
    whole = render(clips, CONFIG)
    torch.testing.assert_close(windows[0], whole[0, :, 0:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(windows[1], whole[1, :, 40:42], atol=1e-5, rtol=0)


def rgb(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels + 1) * 127.5


def test_pixels_have_the_colours_of_the_prompt() -> None:
    for colour, ground in (("red", "navy"), ("white", "black")):
        clip = draw_clip(0, split="test", seed=0, config=CONFIG, scene=scene(ground, colour=colour))
        pixels = render([clip], CONFIG, frames=np.zeros(1))
        assert pixels.shape == (1, 3, 1, 64, 64)
        flat = rgb(pixels[0, :, 0]).flatten(1)
        away = (flat - torch.tensor(GROUNDS[ground])[:, None]).norm(dim=0)
        torch.testing.assert_close(flat[:, away.argmin()], torch.tensor(GROUNDS[ground]).float(), atol=0.1, rtol=0)
        torch.testing.assert_close(flat[:, away.argmax()], torch.tensor(COLOURS[colour]).float(), atol=0.5, rtol=0)
        assert pixels.abs().max() <= 1


def test_two_digits_are_in_the_picture_and_the_second_is_in_front() -> None:
    clip = draw_clip(0, split="test", seed=0, config=CONFIG, scene=PAIR)
    one = render([replace(clip, scene=Scene(movers=PAIR.movers[:1], ground="navy"), bodies=clip.bodies[:1])], CONFIG)
    other = render([replace(clip, scene=Scene(movers=PAIR.movers[1:], ground="navy"), bodies=clip.bodies[1:])], CONFIG)
    # Beside a clip with one digit, as a batch has them.
    both = render([draw_clip(1, split="test", seed=0, config=CONFIG, scene=scene()), clip], CONFIG)[1:]
    ground = torch.tensor(GROUNDS["navy"])[None, :, None, None, None] / 127.5 - 1
    first, second = ((x - ground).abs().sum(1, keepdim=True) > 1e-4 for x in (one, other))
    torch.testing.assert_close(torch.where(second, ground, both), torch.where(second, ground, one), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.where(first, ground, both), torch.where(first, ground, other), atol=1e-4, rtol=0)
    assert first.any() and second.any()
    full = (rgb(other) - torch.tensor(COLOURS["cyan"])[None, :, None, None, None]).abs().amax(1) < 1
    assert torch.allclose(both.movedim(1, -1)[full], other.movedim(1, -1)[full], atol=1e-2)


def test_two_digits_keep_apart_more_than_chance() -> None:
    frames = np.arange(81)

    def close(clips: list) -> float:
        xy = centres(clips, frames, CONFIG).reshape(len(clips), 2, 81, 2)
        return float((np.abs(xy[:, 0] - xy[:, 1]).max(-1) < 12).mean())

    clips = draw_clips(range(60), split="test", seed=0, config=CONFIG, scenes=[PAIR] * 60)
    shuffled = [replace(a, bodies=(a.bodies[0], b.bodies[1])) for a, b in pairwise(clips)]
    assert close(clips) < 0.5 * close(shuffled)


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
@pytest.mark.parametrize("speed", ["slowly", "fast"])
@pytest.mark.parametrize("pair", [False, True])
def test_straight_motion_follows_the_prompt(direction: str, speed: str, pair: bool) -> None:
    frames = np.arange(CONFIG.num_pixel_frames)
    step = np.array(DIRECTIONS[direction])
    margin = (CONFIG.pair_size if pair else CONFIG.digit_size) / 2
    for motion in ("stops", "bounces"):
        asked = scene(direction=direction, speed=speed, motion=motion)
        asked = Scene(movers=asked.movers + (PAIR.movers[1:] if pair else ()))
        clips = draw_clips(range(10), split="test", seed=0, config=CONFIG, scenes=[asked] * 10)
        xy = centres(clips, frames, CONFIG)[:: 1 + pair]
        assert xy.min() >= margin - 1e-9
        assert xy.max() <= CONFIG.size - margin + 1e-9
        along, across = xy @ step, xy @ np.array([step[1], step[0]])
        assert np.ptp(across, axis=1).max() == 0
        pace = {"slowly": CONFIG.slow, "fast": CONFIG.fast}[speed]
        # The first 20 steps are straight: direction is scored over them.
        assert np.allclose(np.diff(along[:, :21]), pace, atol=pace * (CONFIG.speed_jitter + 1e-6))
        if motion == "stops":
            assert np.diff(along).min() >= -1e-9
            assert np.abs(np.diff(along)[:, -1]).max() < (1e-9 if not pair else pace + 0.1)
        elif not pair:
            assert np.diff(along)[:, -20:].min() < -pace / 2


@pytest.mark.parametrize("turn", ["up", "down"])
def test_turning_is_a_corner_half_way(turn: str) -> None:
    asked = scene(direction="left", speed="fast", motion="turns", turn=turn)
    clips = draw_clips(range(20), split="test", seed=0, config=CONFIG, scenes=[asked] * 20)
    xy = centres(clips, np.arange(81), CONFIG)
    steps = np.diff(xy, axis=1)
    assert xy.min() >= 14 - 1e-9 and xy.max() <= 50 + 1e-9
    assert (steps[..., 0] <= 1e-9).all()
    assert (steps[..., 1] * DIRECTIONS[turn][1] >= -1e-9).all()
    # Never both ways at once, but for the frame in which the corner lies.
    assert (np.minimum(np.abs(steps[..., 0]), np.abs(steps[..., 1])) > 1e-6).sum(1).max() <= 1
    corner = np.array([np.flatnonzero(np.abs(s[:, 1]) > 1e-6)[0] for s in steps])
    assert corner.min() >= 9
    assert (np.abs(xy[:, -1, 1] - xy[:, 0, 1]) > 15).all()
    assert (np.abs(xy[:, -1, 0] - xy[:, 0, 0]) > 12).all()


def test_circling_is_a_circle_and_clockwise() -> None:
    circling = Scene(movers=(Mover(digit=3, colour="red", motion="circles"),))
    xy = centres(
        draw_clips(range(20), split="test", seed=0, config=CONFIG, scenes=[circling] * 20), np.arange(120), CONFIG
    )
    assert xy.min() >= 14 - 1e-9 and xy.max() <= 50 + 1e-9
    middle = (xy.min(1, keepdims=True) + xy.max(1, keepdims=True)) / 2
    radius = np.linalg.norm(xy - middle, axis=-1)
    assert np.ptp(radius, axis=1).max() < 0.1 and radius.min() > 9 and radius.max() < 15
    out, step = (xy - middle)[:, :-1], np.diff(xy, axis=1)
    assert (out[..., 0] * step[..., 1] - out[..., 1] * step[..., 0] > 0).all()  # y points down
    assert np.allclose(np.linalg.norm(step, axis=-1), CONFIG.circling, rtol=CONFIG.speed_jitter + 0.01)


def test_pixels_move_as_the_centres_do() -> None:
    for asked in (scene(direction="down", motion="bounces"), scene(motion="turns", turn="down")):
        clip = draw_clip(1, split="test", seed=0, config=CONFIG, scene=asked)
        pixels = render([clip], CONFIG)
        mask = (pixels[0, 0] - pixels[0, 0].amin()).clamp(min=0)
        rows = (mask.sum(2) * (torch.arange(64) + 0.5)).sum(1) / mask.sum((1, 2))
        moved = rows - rows[0]
        xy = centres([clip], np.arange(81), CONFIG)[0]
        np.testing.assert_allclose(moved.numpy(), xy[:, 1] - xy[0, 1], atol=0.3)


def test_larger_videos_show_the_same() -> None:
    large = MovingDigitsConfig.at(128)
    clips = [draw_clip(3, split="test", seed=0, config=config, scene=PAIR) for config in (CONFIG, large)]
    np.testing.assert_allclose(
        2 * centres(clips[:1], np.arange(81), CONFIG), centres(clips[1:], np.arange(81), large), atol=1e-9
    )
    small = render(clips[:1], CONFIG, frames=np.array([0, 40]))
    shrunk = torch.nn.functional.avg_pool3d(render(clips[1:], large, frames=np.array([0, 40])), (1, 2, 2))
    assert (small - shrunk).abs().mean() < 0.02


def test_scenes_and_indices_must_match() -> None:
    with pytest.raises(ValueError, match="2 indices but 1 scenes"):
        draw_clips([0, 1], split="test", seed=0, config=CONFIG, scenes=[scene()])
