"""The dry run's arithmetic: by hand for Wan's own sizes, and measured on small models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from diag_core import CacheConfig, SeededNoise, WanConfig, WanDiT
from diag_core.attention import Blocks
from diag_core.checkpoint import PRESETS, LoadedCheckpoint
from training.block_causal import causal_blocks
from training.distribution_matching import NoiseLaw
from training.recipes.wan import (
    LoraRecipe,
    VideoSize,
    WanDistilRecipe,
    WanOdeInitRecipe,
    ode_init,
    ode_pairs,
    stage1,
    stage2,
)
from training.roles import Roles
from training.rollout import RolloutConfig, rollout
from training.stages.distil import Distil
from training.stages.ode_init import OdeInit
from training.stages.ode_pairs import OdePairs
from training.wan.memory import (
    activations,
    checkpointed_activations,
    distil_memory,
    init_memory,
    lora_parameters,
    pairs_memory,
    parameters,
)
from training.wan.work import DistilWork, Work, forward_work, init_work, pair_work, whole

SMALL = WanConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=2, text_dim=32, text_len=8)
VIDEO = VideoSize(width=64, height=32, latent_frames=9)
BIG = WanConfig.wan_1_3b()


def distil_work(recipe: WanDistilRecipe, config: WanConfig = SMALL) -> DistilWork:
    return DistilWork(recipe=recipe, generator=config, critic=config, real_score=config)


def test_parameters() -> None:
    assert parameters(BIG) == 1_418_996_800
    assert parameters(WanConfig.wan_14b()) == 14_288_491_584
    assert parameters(SMALL) == sum(p.numel() for p in WanDiT(SMALL).parameters())
    # 8 square layers (rank x 2 x 1536 each) and 2 of the feed-forward (rank x (1536 + 8960)), 30 blocks
    assert lora_parameters(BIG, LoraRecipe(rank=256)) == 30 * 256 * (8 * 2 * 1536 + 2 * (1536 + 8960))


def test_a_forward_of_wan_by_hand() -> None:
    chunk = forward_work(BIG, 4680, 12 * 1560, text=False)
    assert chunk.linear == pytest.approx(11.70e12, rel=1e-3)
    assert chunk.attention == pytest.approx((16.15 + 0.44) * 1e12, rel=1e-3)
    full = whole(BIG, VideoSize())
    assert full.attention == 30 * 4 * 32760 * 1536 * (32760 + 512)
    assert pair_work(ode_pairs(), BIG) == 100 * full.forward


# PyTorch counts attention on GPUs only.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v)
    ),
}


def counted(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [("4", {}), ("432", {}), ("32", {"kv_noise": 0.0, "window_frames": 6}), ("3", {"reuse_last_step": False})],
)
@pytest.mark.parametrize("u", [0.05, 0.6, 0.95])
def test_flops_of_rollouts_are_those_that_pytorch_counts(schedule: str, changes: dict, u: float) -> None:
    recipe = WanDistilRecipe(schedule=schedule, video=VIDEO, checkpointing=False, **changes)
    plan, settings = distil_work(recipe).plan(), recipe.settings()
    config = RolloutConfig.of(settings, torch.float32)
    model, shape = WanDiT(SMALL), (1, *VIDEO.shape(16))

    def run(gradients: bool) -> None:
        context = torch.randn(1, 8, 32)
        made = rollout(model, context, config, noise=SeededNoise(0), shape=shape, u=u, gradients=gradients).latents
        if gradients:
            made.sum().backward()

    plain, graded = plan.work(u, gradients=False), plan.work(u, gradients=True)
    assert counted(lambda: run(False)) == pytest.approx(plain.plain.forward, rel=1e-3)
    expected = graded.plain.forward + graded.graded.trained(checkpointing=False)
    assert counted(lambda: run(True)) == pytest.approx(expected, rel=1e-3)


def test_flops_of_updates_are_those_that_pytorch_counts() -> None:
    """Lists of one step, so that it does not matter where chunks exit."""
    recipe = WanDistilRecipe(
        schedule="1", regression_schedule="2", video=VIDEO, batch=1, precision="fp32", weights_precision="fp32",
        checkpointing=False, generator_every=2,
    )  # fmt: skip
    frozen = replace(recipe.settings(), kv_noise=0.0)  # committed by a forward more
    roles = Roles(*(WanDiT(SMALL) for _ in range(3)), LoadedCheckpoint(WanDiT(SMALL), SMALL, frozen))
    encode = lambda prompts: torch.randn(len(prompts), 8, 32)  # noqa: E731
    task = Distil(recipe, roles, draw_prompts=lambda rng, n: [""] * n, encode=encode, shape=VIDEO.shape(16))
    work = replace(distil_work(recipe), regression=frozen)
    assert counted(lambda: task.update(1)) == pytest.approx(work.critic_update(), rel=1e-3)
    both = work.generator_update() + work.critic_update()
    assert counted(lambda: task.update(0)) == pytest.approx(both, rel=1e-3)
    assert work.iteration() == pytest.approx(work.critic_update() + work.generator_update() / 2)


INIT = WanOdeInitRecipe(
    video=replace(VIDEO, latent_frames=15), window_frames=6, sink_frames=2, batch=1, precision="fp32",
    checkpointing=False,
)  # fmt: skip


def test_flops_of_ode_initialisation_are_those_that_pytorch_counts() -> None:
    points = torch.randn(1, 2, *INIT.video.shape(16)).half()
    encode = lambda prompts: torch.randn(len(prompts), 8, 32)  # noqa: E731
    task = OdeInit(INIT, WanDiT(SMALL), OdePairs(points, torch.tensor([1.0, 0.0]), ["a"]), encode)
    assert counted(lambda: task.update(0)) == pytest.approx(init_work(INIT, SMALL), rel=1e-3)


def test_the_mean_over_exits_is_that_of_many_draws() -> None:
    work = distil_work(WanDistilRecipe(schedule="432", video=VIDEO))
    draws = [work.critic_update(float(u)) for u in np.random.default_rng(0).random(3000)]
    assert work.critic_update() == pytest.approx(np.mean(draws), rel=0.02)


def test_a_lora_and_checkpointing_change_the_work_of_an_update() -> None:
    work = Work(linear=10, attention=4, outside=1, entry=1)
    assert work.trained(checkpointing=False) == 16 + 22 + 10 + 1
    assert work.trained(checkpointing=True) == 16 + 22 + 10 + 1 + 14
    assert work.trained(checkpointing=False, lora=True) == 16 + 11 + 10


def saved_bytes(run, model: WanDiT) -> int:
    """What autograd keeps for the backward pass, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        result = run()
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, dim=256, num_heads=2, ffn_dim=640, num_layers=3)])
def test_activations_are_those_that_autograd_keeps(config: WanConfig) -> None:
    model = WanDiT(config)

    def forward(frames: int) -> torch.Tensor:
        return model(torch.randn(1, 16, frames, 8, 8), torch.full((1,), 500.0), torch.randn(1, 8, config.text_dim))

    few, many = (saved_bytes(lambda f=f: forward(f), model) for f in (2, 10))
    tokens = 8 * 16
    assert many - few == pytest.approx(activations(config, tokens), rel=0.02)
    assert checkpointed_activations(config, tokens, 0) < 0.2 * activations(config, tokens)


def test_what_ode_initialisation_keeps_is_what_autograd_keeps() -> None:
    frames, (_, _, rows, columns) = INIT.video.latent_frames, INIT.video.shape(16)
    tokens = frames * rows * columns // 4
    blocks = causal_blocks(frames, rows * columns // 4, INIT.chunk_frames, CacheConfig(6, 2))
    model = WanDiT(SMALL)

    def kept(mask: Blocks | None) -> int:
        latents, timestep = torch.randn(1, 16, frames, rows, columns), torch.full((1,), 500.0)
        return saved_bytes(lambda: model(latents, timestep, torch.randn(1, 8, SMALL.text_dim), mask=mask), model)

    expected = init_memory(INIT, SMALL, gpus=2, videos=1).kept - activations(SMALL, tokens)
    assert kept(blocks) - kept(None) == pytest.approx(expected, rel=0.02)


def test_memory_of_wans_stages_by_hand() -> None:
    count = 1_418_996_800
    memory = distil_memory(distil_work(stage1(), BIG), gpus=8, videos=1)
    lines = {line.name: line.bytes for line in memory.lines}
    assert lines["generator: weights"] == lines["generator: gradients"] == lines["critic: weights"] == 4 * count / 8
    assert lines["generator: optimizer"] == 8 * count / 8 and lines["teacher: weights"] == 2 * count / 8
    assert lines["KV cache"] == 1536 * 2 * (30 * (2 * 12 * 1560 + 2 * 512) + 512)
    assert "frozen student: weights" not in lines
    assert memory.checkpointing and memory.checkpointed < memory.kept / 3
    # Chunks see 0, 3, 6, 9, 9, 9 and 9 latent frames before them, whose keys and values a backward pass needs.
    past = 45 * 1560 * 2 * 2 * 1536 * 30
    assert memory.checkpointed > past + 32760 * 30 * 4 * 1536
    assert memory.total == pytest.approx(1.1 * (sum(lines.values()) + memory.checkpointed))
    # Self-Forcing attends to everything: its cache holds all 21 latent frames.
    beside = replace(distil_work(stage2(), BIG), regression=PRESETS["self-forcing"])
    lines = {line.name: line.bytes for line in distil_memory(beside, gpus=8, videos=1).lines}
    assert lines["KV cache"] == 1536 * 2 * (30 * (2 * 21 * 1560 + 2 * 512) + 512)
    with_lora = distil_memory(distil_work(replace(stage1(), lora=LoraRecipe(rank=64)), BIG), gpus=8, videos=1)
    assert with_lora.total < memory.total - 2 * 10 * count / 8
    # The last three of seven chunks join a sink of 3 latent frames with 9 recent ones.
    joined = 3 * 12 * 1560
    init = init_memory(ode_init(), BIG, gpus=8, videos=1)
    more = init.checkpointed - checkpointed_activations(BIG, 32760, 32760)
    assert more == pytest.approx(2 * 1536 * (32760 + 2 * joined))
    assert pairs_memory(ode_pairs(), BIG, gpus=8).lines[0].bytes == 2 * count
    assert pairs_memory(replace(ode_pairs(), sharded=True), BIG, gpus=8).lines[0].bytes == 2 * count / 8


def test_noise_law_is_wans() -> None:
    assert stage1().noise == NoiseLaw(shift=5.0, lowest=20.0, highest=980.0)
