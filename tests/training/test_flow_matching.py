"""The teacher's stage learns, resumes exactly, and refuses what is not its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diag_core import WanConfig, WanDiT
from diag_core.demo_text import DemoTextEncoder
from training import trainer
from training.checkpoint import saved
from training.data.latents import LatentSet, scenes_to_indices
from training.data.prompts import parse, sample_scene
from training.metrics import Collapse
from training.recipes.teacher import FlowMatchingRecipe
from training.recipes.toy import toy, toy_accelerator, toy_long, toy_smoke
from training.stages import flow_matching
from training.stages.flow_matching import FlowMatching, draw_batch, draw_sigmas, flow_matching_loss, learning_rate

SMALL = FlowMatchingRecipe(
    model=toy_smoke().model, steps=5, image_every=3, image_batch=4, video_batch=2, save_every=1,
    log_every=2,
)  # fmt: skip
encode = DemoTextEncoder().encode


def random_latents(count: int = 8) -> LatentSet:
    """Random video latents; all of first frame n are n, and the scene of each is its own."""
    rng = np.random.default_rng(0)
    attributes = scenes_to_indices([sample_scene(rng) for _ in range(2 * count)])
    videos = torch.randn(count, 16, 6, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    firsts = torch.arange(count).half()[:, None, None, None].expand(-1, 16, 8, 8)
    return LatentSet(videos, attributes[:count], firsts, attributes[count:])


def train(
    recipe: FlowMatchingRecipe,
    data: LatentSet,
    folder: Path,
    *,
    initial: dict | None = None,
    stop_after: int | None = None,
) -> dict[str, torch.Tensor]:
    """The averaged weights."""
    task = FlowMatching(recipe, data, encode, initial=initial)
    trainer.train("teacher", task, recipe, folder, stop_after=stop_after)
    return task.ema.state_dict()


def test_killed_at_any_step_and_resumed_it_gives_the_same_weights(tmp_path: Path) -> None:
    data = random_latents()
    whole = train(SMALL, data, tmp_path / "whole")
    for stop in range(1, SMALL.steps):
        train(SMALL, data, tmp_path / "parts", stop_after=stop)
    parts = train(SMALL, data, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[n], p.detach()) for n, p in WanDiT(SMALL.model).named_parameters())


def test_a_kill_between_saves_costs_only_the_steps_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, recipe = random_latents(), replace(SMALL, save_every=2)
    whole = train(recipe, data, tmp_path / "whole")
    drawn: list[int] = []

    def killed(recipe: FlowMatchingRecipe, data: LatentSet, step: int):
        drawn.append(step)
        if drawn.count(3) == 1 and step == 3:
            raise KeyboardInterrupt
        return draw_batch(recipe, data, step)

    monkeypatch.setattr(flow_matching, "draw_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path / "cut")
    resumed = train(recipe, data, tmp_path / "cut")
    assert drawn == [0, 1, 2, 3, 2, 3, 4]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("log_every", [1, 1000])
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    # Whether it is logged before the next state would be saved or not.
    data, recipe = random_latents(), replace(SMALL, log_every=log_every)
    train(recipe, data, tmp_path, stop_after=2)
    before = saved(tmp_path / trainer.STATES)
    broken = lambda *given, **more: flow_matching_loss(*given, **more) * float("nan")  # noqa: E731
    monkeypatch.setattr(flow_matching, "flow_matching_loss", broken)
    with pytest.raises(Collapse, match=r"loss is nan\. Lower learning_rate") as collapse:
        train(recipe, data, tmp_path)
    assert "set steps" not in str(collapse.value)  # whose learning rate would be another
    assert saved(tmp_path / trainer.STATES) == before == [1, 2]


def test_training_lowers_the_loss_on_data_it_can_fit(tmp_path: Path) -> None:
    recipe = replace(
        SMALL, steps=60, video_batch=8, image_every=1000, warmup_steps=5, learning_rate=5e-3,
        save_every=1000,
    )  # fmt: skip
    data = replace(random_latents(), videos=torch.ones(8, 16, 6, 8, 8).half())
    model = WanDiT(recipe.model)
    model.load_state_dict(train(recipe, data, tmp_path))
    noise = torch.randn(4, 16, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = flow_matching_loss(model, torch.ones_like(noise), encode([""] * 4), torch.full((4,), 0.5), noise)
    assert loss < 1  # predicting nothing gives 2


def test_the_loss_is_that_of_the_flow() -> None:
    latents, noise = torch.randn(2, 2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.25, 0.75])
    seen = {}

    def knows(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, *, frame_positions: None) -> torch.Tensor:
        seen.update(x=x, timestep=timestep)
        return noise - latents

    assert flow_matching_loss(knows, latents, encode(["", ""]), sigma, noise) == 0
    assert seen["timestep"].tolist() == [250, 750]
    torch.testing.assert_close(seen["x"][1], 0.25 * latents[1] + 0.75 * noise[1])


@pytest.mark.parametrize(("frames", "shift"), [(1, 3.0), (9, 9.0)])
def test_noise_levels_are_logit_normal_before_a_shift_that_grows_with_the_frames(frames: int, shift: float) -> None:
    recipe = replace(SMALL, shift=3.0, spread=1.2)
    sigma = draw_sigmas(recipe, 20_000, torch.Generator().manual_seed(0), frames=frames)
    assert sigma.shape == (20_000,) and sigma.min() > 0 and sigma.max() < 1
    assert sigma.median() == pytest.approx(shift / (1 + shift), abs=0.01)  # shift s / (1 + (shift - 1) s) at s = 1/2
    logits = (sigma / (shift - (shift - 1) * sigma)).logit()
    assert logits.std() == pytest.approx(1.2, abs=0.03)


def test_batches_have_the_noise_levels_of_their_number_of_frames() -> None:
    recipe = replace(SMALL, steps=3, image_every=3, sparse_of=(1, 2), sparse_stride=5)
    recipe = replace(recipe, image_batch=4000, sparse_batch=4000, video_batch=4000, shift=2.0, spread=1.0)
    for step, frames in ((0, 2), (1, 6), (2, 1)):
        batch = draw_batch(recipe, random_latents(), step)
        assert batch.latents.shape[2] == frames
        shift = 2.0 * frames**0.5
        assert batch.sigma.median() == pytest.approx(shift / (1 + shift), abs=0.01)


def test_sparse_steps_show_the_first_latent_frame_and_some_of_the_others_and_say_which() -> None:
    data = random_latents()
    recipe = replace(SMALL, steps=9, image_every=10, sparse_of=(2, 3))
    recipe = replace(recipe, sparse_stride=2, sparse_batch=5)
    assert [recipe.on_sparse(step) for step in range(9)] == [True, True, False] * 2 + [True, True, False]
    for step in (0, 1, 3, 4, 6, 7):
        sparse = draw_batch(recipe, data, step)
        assert sparse.latents.shape == sparse.noise.shape == (5, 16, 3, 8, 8)
        assert sparse.frame_positions == (0, 2, 4)
        for latents, prompt in zip(sparse.latents, sparse.prompts, strict=True):
            found = (data.videos[:, :, ::2].float() == latents[None]).flatten(1).all(1)
            video = torch.nonzero(found)[0].item()
            if prompt:
                assert torch.equal(scenes_to_indices([parse(prompt)])[0], data.video_attributes[video])
    assert draw_batch(recipe, data, 2).frame_positions is None
    assert draw_batch(recipe, data, 2).latents.shape == (recipe.video_batch, 16, 6, 8, 8)


def test_a_stage_begins_with_the_weights_of_an_earlier_one(tmp_path: Path) -> None:
    data = random_latents()
    earlier = train(SMALL, data, tmp_path / "one")
    still = replace(SMALL, learning_rate=1e-12, seed=1)
    later = train(still, data, tmp_path / "two", initial=earlier)
    assert all(torch.allclose(earlier[name], later[name], atol=1e-6) for name in earlier)


def test_batches_pair_latents_with_their_prompts() -> None:
    data = random_latents()
    recipe = replace(SMALL, image_batch=200, prompt_dropout=0.0)
    images = draw_batch(recipe, data, 2)
    assert images.latents.shape == images.noise.shape == (200, 16, 1, 8, 8)
    numbers = images.latents[:, 0, 0, 0, 0].tolist()
    assert set(numbers) == set(range(8))
    for number, prompt in zip(numbers, images.prompts, strict=True):
        assert torch.equal(scenes_to_indices([parse(prompt)])[0], data.first_frame_attributes[int(number)])
    clips = draw_batch(recipe, data, 0)
    assert clips.latents.shape == (recipe.video_batch, 16, 6, 8, 8)
    again = draw_batch(recipe, data, 0)
    assert torch.equal(clips.noise, again.noise) and clips.prompts == again.prompts
    assert not torch.equal(clips.noise, draw_batch(replace(recipe, seed=1), data, 0).noise)


def test_a_share_of_prompts_is_left_out() -> None:
    batch = draw_batch(replace(SMALL, image_batch=2000, prompt_dropout=0.1), random_latents(), 2)
    assert 0.07 < batch.prompts.count("") / 2000 < 0.13


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    recipe = replace(SMALL, steps=100, warmup_steps=10, cooldown=0.2, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[79] == 1 and rates[90] == 0.5 and rates[99] == pytest.approx(0.05)


def test_first_frames_come_now_and_then_or_alone() -> None:
    recipe = replace(SMALL, steps=8, image_every=4)
    assert [recipe.on_images(step) for step in range(8)] == ([False] * 3 + [True]) * 2 and not recipe.on_images_alone
    alone = replace(recipe, image_every=1)
    assert all(alone.on_images(step) for step in range(8)) and alone.on_images_alone


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_dropout": 1.5},
        {"video_batch": 0},
        {"steps": 0},
        {"image_every": 0},
        {"learning_rate": 0.0},
        {"shift": float("nan")},
        {"sparse_of": (3, 2)},
    ],
)
def test_a_wrong_recipe_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="recipe: "):
        replace(toy().looks, **change)


def test_recipes_fit_their_machines() -> None:
    for recipe in (toy(), toy_long(), toy_accelerator()):
        model = recipe.model
        assert model.dim == 128 * model.num_heads and model.text_len == 32
        with torch.device("meta"):
            parameters = sum(p.numel() for p in WanDiT(model).parameters())
        assert 2 * parameters < (60e6 if recipe == toy_accelerator() else 15e6)
    assert toy_accelerator().data.size == 128
    with pytest.raises(ValueError, match="on other videos"):
        replace(toy(), data=toy_accelerator().data)
    with pytest.raises(ValueError, match="pairs must be from 0 to 1"):
        replace(toy(), pairs=1.5)
    with pytest.raises(ValueError, match="bidirectional"):
        replace(toy(), settings=replace(toy().settings, causal=True))
    assert [part.seed for part in toy().with_seed(3).parts.values()] == [12, 13, 14, 15]
    assert toy().with_seed(0) == toy()
    assert isinstance(toy().model, WanConfig)
