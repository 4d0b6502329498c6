"""Sample videos at Wan's size: how the teacher's are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distributed_worker import SHAPE, WAN, Embedded, encode, model

from diag_core import SeededNoise, WanConfig
from diag_core.checkpoint import PRESETS, LoadedCheckpoint
from diag_core.kv_cache import KVCache
from training.precision import sampling_precision
from training.recipes.distillation import OdePairsRecipe
from training.recipes.wan import VideoSize
from training.stages.ode_pairs import trajectories
from training.wan import gallery
from training.wan.stages import teacher_sampled_as


def test_the_teachers_videos_are_the_ends_of_trajectories_and_fill_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(cache: KVCache) -> None:
        raise AssertionError("nothing reads it")

    monkeypatch.setattr(KVCache, "_allocate", allocate)
    own, video = model(0), VideoSize(width=32, height=32, latent_frames=SHAPE[1])
    settings = replace(PRESETS["wan"], schedule="6")
    latents = gallery.sample_prompts(own, settings, ["a", "bb"], Embedded(), video)  # type: ignore[arg-type]
    half = sampling_precision(own).itemsize == 2
    recipe = OdePairsRecipe(
        steps=6, shift=settings.shift, cfg=settings.cfg, points=(1000.0,), precision="bf16" if half else "fp32"
    )
    noise = SeededNoise([gallery._SEED, gallery._SEED + 1])
    ends = trajectories(recipe, own, encode(["a", "bb"]), encode([""]), noise, SHAPE)[:, -1]
    torch.testing.assert_close(latents, ends, atol=1e-4, rtol=1e-4)


def test_a_teacher_that_does_not_say_how_it_is_sampled_is_taken_for_wans_own_of_its_size() -> None:
    def settings(config: WanConfig):
        return teacher_sampled_as(LoadedCheckpoint(model(0), config, None))

    assert (settings(WanConfig.wan_14b()).shift, settings(WanConfig.wan_14b()).cfg) == (5, 5)
    assert settings(WanConfig.wan_1_3b()) == settings(WAN) == PRESETS["wan"]
    assert teacher_sampled_as(LoadedCheckpoint(model(0), WAN, PRESETS["wan-14b"])) == PRESETS["wan-14b"]
