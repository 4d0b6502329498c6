"""The moving-digits stages fit together, resume exactly, and refuse what is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diag_core import CacheConfig
from diag_core.checkpoint import load_dit
from diag_core.demo_text import DemoTextEncoder
from training.__main__ import main
from training.block_causal import frame_mask
from training.data.latents import LatentSet, scenes_to_indices
from training.data.prompts import sample_scene
from training.recipes.toy import toy, toy_smoke
from training.stages import causal_flow


def test_every_stage_runs_and_leaves_a_checkpoint_that_carries_its_settings(tmp_path: Path) -> None:
    assert main(["toy-teacher", "--recipe", "toy-smoke", "--out", str(tmp_path)]) == 0
    loaded = load_dit(tmp_path / "dit.safetensors")
    assert loaded.settings == toy_smoke().settings
    assert next(loaded.model.parameters()).dtype == torch.bfloat16
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["videos"] == 2 and set(scores["chance"]) == {"digit", "direction", "colour"}
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "latents").iterdir()}
    assert main(["toy-teacher", "--recipe", "toy-smoke", "--out", str(tmp_path)]) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "latents").iterdir()} == before
    again = tmp_path / "again.json"
    assert main(["toy-evaluate", str(tmp_path), "--prompts", "2", "--seeds", "0", "--json", str(again)]) == 0
    assert json.loads(again.read_text())["scores"] == scores["scores"]


def random_latents() -> LatentSet:
    import numpy as np

    rng = np.random.default_rng(0)
    attributes = scenes_to_indices([sample_scene(rng) for _ in range(8)])
    generator = torch.Generator().manual_seed(0)
    videos = torch.randn(8, 16, 6, 8, 8, generator=generator).half()
    return LatentSet(videos, attributes, videos[:, :, 0], attributes)


def test_killed_at_any_step_and_resumed_it_gives_the_same_weights(tmp_path: Path) -> None:
    recipe, data, encode = toy_smoke().flow, random_latents(), DemoTextEncoder().encode
    whole = causal_flow.train(recipe, data, encode, tmp_path / "whole")
    for stop in range(1, recipe.steps):
        causal_flow.train(recipe, data, encode, tmp_path / "parts", stop_after=stop)
    parts = causal_flow.train(recipe, data, encode, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe, data, encode = toy_smoke().flow, random_latents(), DemoTextEncoder().encode
    causal_flow.train(recipe, data, encode, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="written by another recipe"):
        causal_flow.train(replace(recipe, learning_rate=1.0), data, encode, tmp_path)


def test_training_lowers_the_loss_on_data_it_can_fit(tmp_path: Path) -> None:
    recipe = replace(
        toy_smoke().flow, image_steps=0, video_steps=60, video_batch=8, image_every=1000, warmup_steps=5,
        learning_rate=5e-3, save_every=1000,
    )  # fmt: skip
    data = random_latents()
    constant = LatentSet(
        torch.ones_like(data.videos), data.video_attributes, data.first_frames, data.first_frame_attributes
    )
    weights = causal_flow.train(recipe, constant, DemoTextEncoder().encode, tmp_path)
    from diag_core import WanDiT

    model = WanDiT(recipe.model)
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 16, 6, 8, 8, generator=generator)
    with torch.no_grad():
        sigma = torch.full((4, 6), 0.5)
        context = DemoTextEncoder().encode(["a red 3 moves right"] * 4)
        loss = causal_flow.flow_matching_loss(model, torch.ones_like(noise), context, sigma, noise, None)
    assert loss < 0.5  # predicting nothing gives 2


def test_noise_levels_are_constant_in_a_chunk_and_low_before_the_cut() -> None:
    recipe = toy().flow
    sigma = causal_flow.draw_sigmas(recipe, 400, 21, torch.Generator().manual_seed(0))
    chunks = sigma.unflatten(1, (7, 3))
    assert torch.equal(chunks.amin(2), chunks.amax(2))
    assert sigma.min() > 0 and sigma.max() < 1
    shared = (chunks[:, :-1, 0] == chunks[:, 1:, 0]).float().mean(0)  # two neighbours before the cut are at one level
    assert shared[0] > shared[4] > 0
    first_is_context = (chunks[:, 0, 0] <= recipe.max_context_sigma).float().mean()
    assert 0.8 < first_is_context <= 1 - 1 / 7 + 0.1


def test_a_chunk_is_trained_on_the_window_it_will_be_sampled_with() -> None:
    mask = frame_mask(15, 3, CacheConfig(window_frames=9, sink_frames=3))
    seen = {row: set(torch.nonzero(mask[row])[:, 0].tolist()) for row in (0, 4, 9, 14)}
    assert seen[0] == {0, 1, 2}
    assert seen[4] == {0, 1, 2, 3, 4, 5}
    assert seen[9] == {0, 1, 2, 6, 7, 8, 9, 10, 11}
    assert seen[14] == {0, 1, 2, 9, 10, 11, 12, 13, 14}


@pytest.mark.parametrize("change", [{"prompt_dropout": 1.5}, {"video_batch": 0}, {"image_steps": 0, "video_steps": 0}])
def test_a_wrong_recipe_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="recipe: "):
        replace(toy().flow, **change)


def test_errors_are_one_line(tmp_path: Path, capsys) -> None:
    assert main(["toy-evaluate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
