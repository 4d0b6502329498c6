from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data.moving_digits import MovingDigitsConfig, centres, draw_clip, draw_clips, render, scan_label, scans_of
from training.data.prompts import COLOURS, DIRECTIONS, GROUNDS, Scene

CONFIG = MovingDigitsConfig()


def scene(**changes: object) -> Scene:
    values = {"digit": 3, "colour": "red", "ground": "navy", "direction": "right", "speed": "fast", "edge": "stops"}
    return Scene(**{**values, **changes})  # type: ignore[arg-type]


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
            assert clip.scan in scans_of(split, clip.scene.digit)
            assert (clip.scale, clip.rotation) == (1, 0) or split == "train"


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


def test_pixels_have_the_colours_of_the_prompt() -> None:
    for colour, ground in (("red", "navy"), ("white", "black")):
        clip = draw_clip(0, split="test", seed=0, config=CONFIG, scene=scene(colour=colour, ground=ground))
        pixels = render([clip], CONFIG, frames=np.zeros(1))
        assert pixels.shape == (1, 3, 1, 64, 64)
        rgb = ((pixels[0, :, 0] + 1) * 127.5).flatten(1)
        away = (rgb - torch.tensor(GROUNDS[ground])[:, None]).norm(dim=0)
        torch.testing.assert_close(rgb[:, away.argmin()], torch.tensor(GROUNDS[ground]).float(), atol=0.1, rtol=0)
        torch.testing.assert_close(rgb[:, away.argmax()], torch.tensor(COLOURS[colour]).float(), atol=0.5, rtol=0)
        assert pixels.abs().max() <= 1


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
@pytest.mark.parametrize("speed", ["slowly", "fast"])
def test_motion_follows_the_prompt(direction: str, speed: str) -> None:
    frames = np.arange(CONFIG.num_pixel_frames)
    step = np.array(DIRECTIONS[direction])
    for edge in ("stops", "bounces"):
        clips = [
            draw_clip(i, split="test", seed=0, config=CONFIG, scene=scene(direction=direction, speed=speed, edge=edge))
            for i in range(10)
        ]
        xy = centres(clips, frames, CONFIG)
        assert xy.min() >= CONFIG.edge_margin - 1e-9
        assert xy.max() <= CONFIG.size - CONFIG.edge_margin + 1e-9
        along, across = xy @ step, xy @ np.array([step[1], step[0]])
        assert np.ptp(across, axis=1).max() == 0
        pace = {"slowly": CONFIG.slow, "fast": CONFIG.fast}[speed]
        # The first 20 steps are straight: direction is scored over them.
        assert np.allclose(np.diff(along[:, :21]), pace, atol=pace * (CONFIG.speed_jitter + 1e-6))
        if edge == "stops":
            assert np.diff(along).min() >= -1e-9
            assert np.abs(np.diff(along)[:, -1]).max() < 1e-9
        else:
            assert np.diff(along)[:, -20:].min() < -pace / 2


def test_pixels_move_as_the_centres_do() -> None:
    clip = draw_clip(1, split="test", seed=0, config=CONFIG, scene=scene(direction="down", edge="bounces"))
    pixels = render([clip], CONFIG)
    mask = (pixels[0, 0] - pixels[0, 0].amin()).clamp(min=0)
    rows = (mask.sum(2) * (torch.arange(64) + 0.5)).sum(1) / mask.sum((1, 2))
    moved = rows - rows[0]
    xy = centres([clip], np.arange(81), CONFIG)[0]
    np.testing.assert_allclose(moved.numpy(), xy[:, 1] - xy[0, 1], atol=0.3)


def test_scenes_and_indices_must_match() -> None:
    with pytest.raises(ValueError, match="2 indices but 1 scenes"):
        draw_clips([0, 1], split="test", seed=0, config=CONFIG, scenes=[scene()])
