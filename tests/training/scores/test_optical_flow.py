from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

from training.data.moving_digits import centres, draw_clips, render
from training.data.paths import MovingDigitsConfig
from training.data.prompts import parse
from training.scores.foreground import foreground
from training.scores.optical_flow import flow_steps, flow_tracks

pytest.importorskip("cv2")
CONFIG = MovingDigitsConfig()
FRAMES = np.arange(30)
PROMPTS = ("a red 3 moves right fast and bounces", "a white 8 moves up slowly and stops", "a cyan 5 circles")


def covers() -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [parse(prompt) for prompt in PROMPTS]
    clips = draw_clips(range(3), split="test", seed=0, config=CONFIG, scenes=scenes)
    pixels = render(clips, CONFIG, frames=FRAMES)
    cover, _ = foreground(pixels.transpose(1, 2).flatten(0, 1))
    return cover.unflatten(0, (3, -1)), torch.from_numpy(centres(clips, FRAMES, CONFIG)).float()


def test_flow_is_the_way_of_the_centre() -> None:
    cover, centre = covers()
    steps = flow_steps(cover)
    torch.testing.assert_close(steps, centre.diff(dim=1), atol=0.5, rtol=0)
    way = flow_tracks(steps)
    torch.testing.assert_close(way, centre - centre[:, :1], atol=2.5, rtol=0)


def test_frozen_and_empty_videos_have_none() -> None:
    cover, _ = covers()
    assert flow_steps(cover[:, :1].expand_as(cover)).norm(dim=-1).max() < 0.05
    assert flow_steps(torch.zeros_like(cover)).abs().max() == 0


def test_a_jump_across_the_frame_is_not_followed() -> None:
    cover, _ = covers()
    jumping = cover[:1, :2].clone()
    jumping[:, 1] = cover[:1, 0].roll(30, dims=-1)
    assert flow_steps(jumping).norm(dim=-1).max() < 15


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        flow_steps(torch.zeros(1, 2, 8, 8))
