"""Scores on videos whose answers are known, because they were rendered to be right or wrong in one respect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.classifier import DigitClassifier, load_classifier, measure_accuracy
from training.data.moving_digits import MovingDigitsConfig, draw_clips, render
from training.data.prompts import Scene, held_out_scenes, parse
from training.evaluate import chunk_slices, evaluate_videos, read_directions, scenes_of, score_videos, speeds, track

CONFIG = MovingDigitsConfig()
FRAMES = np.arange(33)


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return load_classifier(Path(__file__).parents[2] / "demo" / "classifier.safetensors")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return held_out_scenes(20, seed=5)


@pytest.fixture(scope="module")
def pixels(scenes: list[Scene]) -> torch.Tensor:
    return videos(scenes)


def videos(scenes: list[Scene]) -> torch.Tensor:
    return render(
        draw_clips(range(len(scenes)), split="test", seed=0, config=CONFIG, scenes=scenes), CONFIG, frames=FRAMES
    )


def test_right_videos(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    scores = score_videos(pixels, scenes, classifier)
    assert scores["digit"].mean() >= 0.95
    assert scores["direction"].mean() == 1
    assert scores["colour"].mean() == 1
    assert scores["colour_error"].max() < 0.03
    assert scores["ground_error"].max() < 0.01
    assert scores["chunk_digit"].shape == (20, 3)
    assert scores["chunk_digit"].mean() >= 0.95
    # Frames in which a digit has stopped count as well, so the mean is below the pace.
    fast = torch.tensor([scene.speed == "fast" for scene in scenes])
    assert 0.8 * CONFIG.fast < scores["speed"][fast].mean() < 1.1 * CONFIG.fast
    assert 0.8 * CONFIG.slow < scores["speed"][~fast].mean() < 1.15 * CONFIG.slow


def test_frozen_videos_do_not_move(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    frozen = pixels[:, :, :1].expand_as(pixels)
    noisy = frozen + 0.05 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    for still in (frozen, noisy):
        scores = score_videos(still, scenes, classifier)
        assert scores["direction"].sum() == 0
        assert scores["speed"].max() < 0.15
        assert scores["digit"].mean() >= 0.9


def test_wrong_digits(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    asked = [replace(scene, digit=(scene.digit + 5) % 10) for scene in scenes]
    scores = score_videos(pixels, asked, classifier)
    assert scores["digit"].mean() <= 0.05
    assert scores["direction"].mean() == 1


def test_wrong_directions(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    turned = {"right": "left", "left": "up", "up": "down", "down": "right"}
    asked = [replace(scene, direction=turned[scene.direction]) for scene in scenes]
    assert score_videos(pixels, asked, classifier)["direction"].sum() == 0


def test_a_digit_that_changes_loses_its_later_chunks(scenes: list[Scene], classifier: DigitClassifier) -> None:
    other = videos([replace(scene, digit=(scene.digit + 1) % 10) for scene in scenes])
    changed = videos(scenes)
    changed[:, :, 21:] = other[:, :, 21:]
    by_chunk = score_videos(changed, scenes, classifier)["chunk_digit"].mean(0)
    assert by_chunk[:2].min() >= 0.95
    assert by_chunk[2] <= 0.05


def test_teleporting_is_no_direction() -> None:
    frames = torch.arange(30.0)
    jump = torch.stack([torch.where(frames < 10, 15.0, 45.0), torch.full_like(frames, 30)], -1)
    walk = torch.stack([15 + frames, torch.full_like(frames, 30)], -1)
    back = walk.flip(0)
    wander = 32 + 15 * torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    assert read_directions(torch.stack([jump, walk, back, wander])) == [None, "right", "left", None]
    assert speeds(wander[None]) > 10 * speeds(walk[None])
    assert speeds(walk[None]) == 1


def test_saturating_colour_drifts(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    # Contrast grows by 4% of it a frame from the second chunk on, until everything is at the ends of the range.
    gain = 1 + 0.04 * (torch.arange(FRAMES.size) - 9).clamp(min=0)[None, None, :, None, None]
    coloured = torch.tensor([scene.colour != "white" for scene in scenes])
    scores = score_videos(pixels * gain, scenes, classifier)
    error = scores["chunk_colour_error"].mean(0)
    assert error[0] < 0.03 < error[1] < error[2]
    saturation = scores["chunk_saturation"][coloured].mean(0)
    assert saturation[0] + 0.02 < saturation[1] <= saturation[2]


def test_wrong_colours(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    asked = [replace(scene, colour="white" if scene.colour != "white" else "red", ground="forest") for scene in scenes]
    scores = score_videos(pixels, asked, classifier)
    assert scores["colour"].sum() == 0
    assert scores["colour_error"].min() > 0.1
    assert scores["ground_error"].mean() > 0.05


def test_empty_videos_are_no_digits(scenes: list[Scene], classifier: DigitClassifier) -> None:
    empty = torch.full((20, 3, 9, 64, 64), -0.9)
    scores = score_videos(empty, scenes, classifier)
    assert scores["digit"].mean() <= 0.2
    assert scores["direction"].sum() == 0
    assert all(torch.isfinite(value).all() for value in scores.values())
    assert track(empty).cover.max() == 0


def test_out_of_range_pixels_score_as_what_is_shown(
    pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier
) -> None:
    loud, shown = (
        score_videos(3 * pixels, scenes, classifier),
        score_videos((3 * pixels).clamp(-1, 1), scenes, classifier),
    )
    assert all(torch.equal(loud[key], shown[key]) for key in loud)


def test_chunks_follow_the_latent_frames() -> None:
    assert [(s.start, s.stop) for s in chunk_slices(81)][:3] == [(0, 9), (9, 21), (21, 33)]
    assert [(s.start, s.stop) for s in chunk_slices(81)][-1] == (69, 81)
    assert [(s.start, s.stop) for s in chunk_slices(10)] == [(0, 9), (9, 10)]
    assert [(s.start, s.stop) for s in chunk_slices(5, chunk_frames=1)] == [(0, 1), (1, 5)]


def test_evaluation_of_a_sampler(classifier: DigitClassifier) -> None:
    seen: list[int] = []

    def half_right(prompts: list[str], seed: int) -> torch.Tensor:
        seen.append(seed)
        asked = scenes_of(prompts)
        return videos([replace(s, direction="left" if i % 2 else s.direction) for i, s in enumerate(asked)])

    scenes = [replace(scene, direction="up") for scene in held_out_scenes(8, seed=1)]
    result = evaluate_videos(half_right, scenes, classifier, seeds=(0, 1), batch=4)
    assert len(set(seen)) == 4
    assert result["scores"]["direction"] == 0.5
    assert result["spread"]["direction"] == 0
    assert result["videos"] == 16
    assert result["chance"]["digit"] == 0.1
    assert result["chance"]["direction"] == 0.25
    assert len(result["scores"]["chunk_digit"]) == 3


def test_scenes_must_match_videos(pixels: torch.Tensor, scenes: list[Scene], classifier: DigitClassifier) -> None:
    with pytest.raises(ValueError, match="20 videos but 3 scenes"):
        score_videos(pixels, scenes[:3], classifier)
    with pytest.raises(ValueError, match="at least 2 pixel frames"):
        score_videos(pixels[:, :, :1], scenes, classifier)
    assert scenes_of(["a red 3 moves right fast and stops on a navy ground"]) == [
        parse("red 3, right, fast, stops, navy")
    ]


def test_the_classifier_in_demo_reads_test_scans(classifier: DigitClassifier) -> None:
    assert measure_accuracy(classifier, videos=30)["frames"] >= 0.95
    shares = measure_accuracy(classifier, videos=20, reconstruct=lambda shown: shown.flip(1))
    # Other colours are read as well; nothing is read where there is nothing.
    assert min(shares.values()) >= 0.9
    assert measure_accuracy(classifier, videos=20, reconstruct=torch.zeros_like)["videos"] <= 0.3
