"""The signs of collapse, on videos made to show them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.metrics import Collapse, HealthLimits, HealthWatch, pixel_health, require_finite, signs_of_collapse


@pytest.fixture()
def healthy() -> Tensor:
    """A coloured square that moves over a dark ground, [2,3,12,32,32]."""
    pixels = torch.full((2, 3, 12, 32, 32), -0.8)
    for t in range(12):
        pixels[:, 0, t, 8:20, 2 * t : 2 * t + 8] = 0.4
    return pixels


def test_health_by_hand() -> None:
    pixels = torch.full((1, 3, 2, 1, 2), -1.0)
    pixels[0, 0, 1, 0, 0] = 1.0  # one red pixel of two, in the second frame of two
    health = pixel_health(pixels)
    assert health["motion"] == pytest.approx(1 / 6)  # one of three channels of one of two pixels
    assert health["saturation"] == pytest.approx(1 / 4)
    # brightness 1/3 and 0 in the second frame: standard deviation sqrt(2) / 6, and 0 in the first
    assert health["contrast"] == pytest.approx(math.sqrt(2) / 12)


def signs(pixels: Tensor, teacher: Tensor) -> list[str]:
    return [s.split(":")[0] for s in signs_of_collapse(pixel_health(pixels), pixel_health(teacher), HealthLimits())]


def test_a_healthy_video_shows_no_sign(healthy: Tensor) -> None:
    assert signs(healthy, healthy) == []
    assert signs(0.8 * healthy, healthy) == []


def test_each_sign_is_named(healthy: Tensor) -> None:
    assert signs(healthy[:, :, :1].expand_as(healthy), healthy) == ["static"]
    flashing = healthy.clone()
    flashing[:, :, ::2] += 0.5
    assert "flashing" in signs(flashing, healthy)
    colourful = healthy.clone()
    colourful[:, 2] = 1.0
    assert "saturated" in signs(colourful, healthy)
    assert "washed out" in signs(0.1 * healthy, healthy)
    harsh = torch.where(healthy > 0, 1.0, -1.0).repeat_interleave(2, 0)
    harsh[:, :, :, ::2] = 1.0
    assert "harsh" in signs(harsh, healthy)
    assert signs_of_collapse(
        {"motion": math.nan, "saturation": 1.0, "contrast": 1.0}, pixel_health(healthy), HealthLimits()
    ) == ["not a number: motion of the samples"]


def test_single_frames_have_no_motion_to_judge(healthy: Tensor) -> None:
    frame = healthy[:, :, :1]
    assert "motion" not in pixel_health(frame)
    assert signs(frame, frame) == []
    assert signs(0.1 * frame, frame) == ["washed out"]


def test_a_run_stops_after_some_bad_samples_in_a_row(healthy: Tensor) -> None:
    good, still = pixel_health(healthy), pixel_health(healthy[:, :, :1].expand_as(healthy))
    watch = HealthWatch(good, HealthLimits(patience=2))
    assert watch.judge(100, still) != []
    assert watch.judge(200, good) == []
    watch.judge(300, still)
    with pytest.raises(Collapse, match=r"iteration 400, static: motion is 0\.00 of the teacher's.*generator_every"):
        watch.judge(400, still)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    require_finite(1, {"critic": 0.5})
    with pytest.raises(Collapse, match=r"iteration 7, not a number: critic is nan. Lower learning_rate"):
        require_finite(7, {"generator": 1.0, "critic": math.nan})


@pytest.mark.parametrize("wrong", [{"static": 1.5}, {"flashing": 0.5}, {"saturated": 1.0}, {"patience": 0}])
def test_limits_that_nothing_could_keep_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="health limits"):
        HealthLimits(**wrong)
