from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from diag_core.vae.tiny import TinyVAE
from training.data.latents import Shard, check_shard, indices_to_scenes, load_latents, make_shard, scenes_to_indices
from training.data.moving_digits import MovingDigitsConfig, draw_clips
from training.data.prompts import parse, sample_scene
from training.io import load_tensors
from training.stages.autoencoder import toy_vae_config

SHORT = MovingDigitsConfig(num_pixel_frames=9)


@pytest.fixture(scope="module")
def vae() -> TinyVAE:
    torch.manual_seed(0)
    return TinyVAE(toy_vae_config()).to(memory_format=torch.channels_last).eval()


def test_scenes_survive_as_indices() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, held_out=None) for _ in range(200)]
    indices = scenes_to_indices(scenes)
    assert indices.dtype == torch.uint8
    assert indices_to_scenes(indices) == scenes


def test_shards_hold_what_their_prompts_say(tmp_path: Path, vae: TinyVAE) -> None:
    shards = [
        Shard(kind=kind, number=number, seed=0, size=size, data=SHORT)
        for kind, size in (("videos", 3), ("first_frames", 5))
        for number in range(3)
    ]
    for shard in shards:
        make_shard(shard, tmp_path, vae)
    latents = load_latents([shard for shard in shards if shard.number < 2], tmp_path)  # those asked for, no others
    assert latents.videos.shape == (6, 16, 3, 8, 8)
    assert latents.first_frames.shape == (10, 16, 8, 8)
    assert latents.videos.dtype == latents.first_frames.dtype == torch.float16
    clips = draw_clips(range(6), split="train", seed=0, config=SHORT)
    prompts = latents.video_prompts([4, 1], np.random.default_rng(0))
    assert [parse(prompt) for prompt in prompts] == [clips[4].scene, clips[1].scene]
    assert len({tuple(latents.video_prompts([0], np.random.default_rng(i))) for i in range(20)}) > 3
    assert len(latents.first_frame_prompts(torch.tensor([9]), np.random.default_rng(0))) == 1
    # Neither kind repeats a clip, and they share none.
    firsts = torch.cat([latents.videos[:, :, 0], latents.first_frames]).flatten(1)
    assert len(torch.unique(firsts, dim=0)) == 16


def test_shards_are_a_function_of_their_number(tmp_path: Path, vae: TinyVAE) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    make_shard(Shard(kind="videos", number=1, seed=0, size=2, data=SHORT), one, vae)
    make_shard(Shard(kind="videos", number=0, seed=0, size=2, data=SHORT), two, vae)
    path = make_shard(Shard(kind="videos", number=1, seed=0, size=2, data=SHORT), two, vae)
    alone, beside = load_tensors(one / path.name), load_tensors(path)
    assert alone[1] == beside[1]
    assert all(torch.equal(alone[0][name], beside[0][name]) for name in ("latents", "attributes"))
    before = path.stat().st_mtime_ns
    assert make_shard(Shard(kind="videos", number=1, seed=0, size=2, data=SHORT), two, vae).stat().st_mtime_ns == before


def test_two_digits_are_as_frequent_as_asked_for(tmp_path: Path, vae: TinyVAE) -> None:
    for pairs in (0.0, 1.0):
        shard = Shard(kind="first_frames", number=0, seed=0, size=20, pairs=pairs)
        path = make_shard(shard, tmp_path / str(pairs), vae)
        scenes = indices_to_scenes(load_tensors(path)[0]["attributes"])
        assert {len(scene.movers) for scene in scenes} == {1 + int(pairs)}


def test_shards_that_were_made_otherwise_are_not_taken(tmp_path: Path, vae: TinyVAE) -> None:
    make_shard(Shard(kind="first_frames", number=0, seed=0, size=2, pairs=0.2), tmp_path, vae)
    with pytest.raises(ValueError, match=r"_0000\.safetensors was made with pairs 0\.2, now it is 0\.6"):
        make_shard(Shard(kind="first_frames", number=0, seed=0, size=2, pairs=0.6), tmp_path, vae)
    with pytest.raises(ValueError, match=r"was made with data\.num_pixel_frames 81, now it is 9"):
        make_shard(Shard(kind="first_frames", number=0, seed=0, size=2, pairs=0.2, data=SHORT), tmp_path, vae)
    other = copy.deepcopy(vae)
    torch.nn.init.zeros_(next(other.parameters()))
    with pytest.raises(ValueError, match="was made with vae"):
        make_shard(Shard(kind="first_frames", number=0, seed=0, size=2, pairs=0.2), tmp_path, other)


def test_wrong_use_is_refused(tmp_path: Path, vae: TinyVAE) -> None:
    with pytest.raises(ValueError, match="unknown kind of latents 'frames'"):
        make_shard(Shard(kind="frames", number=0, seed=0), tmp_path, vae)
    with pytest.raises(ValueError, match=r"videos_0000\.safetensors is missing\. Run the stage latents first"):
        check_shard(Shard(kind="videos", number=0, seed=0), tmp_path, vae)
