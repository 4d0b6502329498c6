"""The teacher's trajectories, and the student that learns to jump to their ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, WanConfig, WanDiT, generate
from diag_core.noise_schedule import add_noise
from training.recipes.distillation import OdeInitRecipe, OdePairsRecipe
from training.stages.begin import begin
from training.stages.ode_init import OdeInit, draw_picks, points_at
from training.stages.ode_pairs import OdePairs, load_pairs, make_pairs, trajectories

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
SHAPE = (4, 6, 4, 4)
RECIPE = OdePairsRecipe(shards=2, pairs_a_shard=3, batch=2, steps=20, cfg=3.0, precision="fp32")


def encode(prompts: list[str]) -> Tensor:
    """A vector of its own for every prompt."""
    return torch.stack([torch.randn(5, 8, generator=torch.Generator().manual_seed(len(p))) for p in prompts])


def draw_prompts(rng: np.random.Generator, count: int) -> list[str]:
    return ["x" * int(n) for n in rng.integers(1, 40, size=count)]


@pytest.fixture()
def teacher() -> WanDiT:
    torch.manual_seed(0)
    return WanDiT(WAN).requires_grad_(False)


def test_points_lie_at_the_student_s_steps_and_the_end_is_what_the_sampler_makes(teacher: WanDiT) -> None:
    context, negative = encode(["a", "bbb"]), encode([""])
    points = trajectories(RECIPE, teacher, context, negative, SeededNoise(5), SHAPE)
    assert points.shape == (2, 5, *SHAPE)
    assert [RECIPE.levels[i] for i in RECIPE.point_indices] == pytest.approx(
        DiagonalSchedule.parse("1000,750,500,100").sigmas(0)
    )
    torch.testing.assert_close(points[:, 0], SeededNoise(5).initial(0, (2, *SHAPE)))
    sampled = generate(
        teacher, context, DiagonalSchedule.parse("20"), noise=SeededNoise(5), num_latent_frames=6, height=4, width=4,
        cache=CacheConfig(None, 0), chunk_frames=6, step="euler", cfg=3.0, negative=negative.expand_as(context),
    )  # fmt: skip
    torch.testing.assert_close(points[:, -1], sampled, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(points[:, -1], trajectories(
        replace(RECIPE, cfg=1.0), teacher, context, negative, SeededNoise(5), SHAPE)[:, -1], atol=1e-3)  # fmt: skip


def test_a_step_that_falls_between_takes_the_nearest() -> None:
    recipe = replace(RECIPE, steps=48)
    nearest = [1000 * (1 - i / 48) for i in recipe.point_indices]
    assert nearest == pytest.approx([1000, 750, 500, 104.17], abs=0.01)
    with pytest.raises(ValueError, match="points fall on one of 2 steps twice"):
        replace(RECIPE, steps=2)
    with pytest.raises(ValueError):
        replace(RECIPE, points=(100.0, 750.0))


def make(folder: Path, teacher: WanDiT, recipe: OdePairsRecipe = RECIPE) -> OdePairs:
    make_pairs(recipe, teacher, folder, draw_prompts=draw_prompts, encode=encode, shape=SHAPE)
    return load_pairs(folder)


def test_shards_are_whole_or_absent_and_the_same_in_any_order(
    tmp_path: Path, teacher: WanDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.stages import ode_pairs

    whole = make(tmp_path / "whole", teacher)
    assert whole.points.shape == (6, 5, *SHAPE) and whole.points.dtype == torch.float16
    assert whole.sigmas[-1] == 0 and len(whole.prompts) == 6
    save, saves = ode_pairs.save_tensors, []

    def full(*arguments: object) -> Path:
        saves.append(1)
        if len(saves) == 2:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(ode_pairs, "save_tensors", full)
    with pytest.raises(OSError):
        make(tmp_path / "cut", teacher)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["pairs_0000.safetensors"]
    monkeypatch.setattr(ode_pairs, "save_tensors", save)
    (tmp_path / "cut" / "pairs_0000.safetensors").unlink()
    resumed = make(tmp_path / "cut", teacher)
    assert torch.equal(whole.points, resumed.points) and whole.prompts == resumed.prompts
    # No two videos share their noise.
    assert len(torch.unique(whole.points[:, 0].flatten(1), dim=0)) == 6


def test_a_damaged_shard_is_told(tmp_path: Path, teacher: WanDiT) -> None:
    make(tmp_path, teacher)
    shard = tmp_path / "pairs_0001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"pairs_0001\.safetensors is damaged, or has no checksums: delete it"):
        load_pairs(tmp_path)


def test_missing_pairs_say_which_stage_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage ode-pairs first"):
        load_pairs(tmp_path)


def test_a_part_of_the_pairs_is_not_taken_for_all(tmp_path: Path, teacher: WanDiT) -> None:
    begin(tmp_path, RECIPE, {})
    make(tmp_path, teacher)
    (tmp_path / "pairs_0001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pairs_0001\.safetensors is not made yet: run the stage ode-pairs first"):
        load_pairs(tmp_path)


def test_every_chunk_stands_at_a_point_of_its_own() -> None:
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
    points = sigmas.view(1, 4, 1, 1, 1, 1).expand(50, 4, 2, 6, 2, 2)
    chosen, sigma = points_at(points, sigmas, 3, draw_picks(np.random.default_rng(0), 50, chunks=2, points=4))
    assert chosen.shape == (50, 2, 6, 2, 2) and sigma.shape == (50, 6)
    assert torch.equal(chosen, sigma[:, None, :, None, None].expand_as(chosen))
    chunks = sigma.unflatten(1, (2, 3))
    assert torch.equal(chunks.amin(2), chunks.amax(2))
    assert set(sigma.flatten().tolist()) == set(sigmas[:3].tolist())  # never the end itself
    assert (chunks[:, 0, 0] != chunks[:, 1, 0]).any()


def test_the_student_learns_to_jump_to_the_end(teacher: WanDiT) -> None:
    """Trajectories that are straight lines to one clean video: a student that learns it jumps there from any point."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 1, 4, 4, generator=generator).expand(8, *SHAPE)
    noise = torch.randn(8, *SHAPE, generator=generator)
    sigmas = torch.tensor([1.0, 0.9, 0.5, 0.0])
    points = torch.stack([add_noise(clean, noise, float(s)) for s in sigmas], 1).half()
    recipe = OdeInitRecipe(
        steps=150, batch=8, learning_rate=3e-3, clip=1.0, window_frames=3, sink_frames=0, precision="fp32"
    )
    task = OdeInit(recipe, teacher, OdePairs(points, sigmas, [f"{'x' * i}" for i in range(8)]), encode)
    losses = [task.update(step)["ode"].item() for step in range(recipe.steps)]
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]
    assert task.ema.updates == recipe.steps


def test_a_chunk_never_sees_a_later_one(teacher: WanDiT) -> None:
    points = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
    pairs = OdePairs(points, torch.tensor([1.0, 0.9, 0.5, 0.0]), ["a", "bb"])
    task = OdeInit(OdeInitRecipe(window_frames=6, sink_frames=3, precision="fp32"), teacher, pairs, encode)
    x = torch.randn(1, *SHAPE, requires_grad=True)
    task.student(x, torch.full((1, 6), 500.0), encode(["a"]), mask=task.seen)[:, :, :3].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, :3].any() and not x.grad[:, :, 3:].any()
