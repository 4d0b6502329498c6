"""The rollout against the sampler, and its gradients against a forward that shares nothing with it but the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from masks import dense
from torch import Tensor

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, WanConfig, WanDiT, generate
from diag_core.noise_schedule import x0_from_flow
from diag_core.rope import rotate
from training.block_causal import causal_blocks
from training.parallelize import checkpoint_activations
from training.rollout import Rollout, RolloutConfig, exit_step, rollout

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=3, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
FRAMES, ROWS, COLUMNS = 15, 4, 4
SHAPE = (2, 4, FRAMES, ROWS, COLUMNS)
LAST = DiagonalSchedule.parse("432").sigmas(0)[-1]

POLICIES = {
    "last step": ContextPolicy.last_step(),
    "reused": ContextPolicy(sigma=LAST, reuse_last_step=True),
    "noised": ContextPolicy.noised(LAST),
    "clean": ContextPolicy.clean(),
}
CACHES = {
    "evicting": CacheConfig(window_frames=9, sink_frames=3),
    "no sink": CacheConfig(window_frames=6, sink_frames=0),
    "everything": CacheConfig(window_frames=None, sink_frames=0),
}


@pytest.fixture()
def model() -> WanDiT:
    torch.manual_seed(0)
    return WanDiT(WAN)


@pytest.fixture()
def context() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def config(policy: ContextPolicy = POLICIES["reused"], cache: CacheConfig = CACHES["evicting"]) -> RolloutConfig:
    return RolloutConfig(
        schedule=DiagonalSchedule.parse("432"), policy=policy, cache=cache, chunk_frames=3, precision=torch.float32
    )


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("cache", [*CACHES.values(), CacheConfig(9, 3, "relative")], ids=[*CACHES, "relative"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_with_exits_at_the_last_step_it_is_what_generate_samples(
    model: WanDiT, context: Tensor, policy: ContextPolicy, cache: CacheConfig, gradients: bool
) -> None:
    own = config(policy, cache)
    sampled = generate(
        model, context, own.schedule, noise=SeededNoise(7), num_latent_frames=FRAMES, height=ROWS, width=COLUMNS,
        cache=cache, policy=policy,
    )  # fmt: skip
    rolled = rollout(model, context, own, noise=SeededNoise(7), shape=SHAPE, gradients=gradients)
    torch.testing.assert_close(rolled.latents.detach(), sampled, atol=1e-5, rtol=1e-5)
    assert rolled.latents.requires_grad == gradients


def test_gradients_or_not_the_latents_are_the_same(model: WanDiT, context: Tensor) -> None:
    with_, without = (
        rollout(model, context, config(), noise=SeededNoise(3), shape=SHAPE, u=0.4, gradients=gradients).latents
        for gradients in (True, False)
    )
    torch.testing.assert_close(with_.detach(), without, atol=1e-5, rtol=1e-5)


def test_u_picks_the_same_share_of_every_list() -> None:
    assert [exit_step(0.0, n) for n in (4, 3, 2)] == [0, 0, 0]
    assert [exit_step(0.5, n) for n in (4, 3, 2)] == [2, 1, 1]
    assert [exit_step(0.99, n) for n in (4, 3, 2)] == [3, 2, 1]
    assert [exit_step(None, n) for n in (4, 3, 2)] == [3, 2, 1]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_after_an_early_exit_the_estimate_is_committed_at_the_kv_level(
    model: WanDiT, context: Tensor, policy: ContextPolicy
) -> None:
    noise = SeededNoise(5)
    rolled = rollout(model, context, config(policy), noise=noise, shape=SHAPE, u=0.0, gradients=False)
    sigma = 0.0 if policy == POLICIES["clean"] else LAST
    for chunk, committed in enumerate(rolled.commits):
        x0 = rolled.latents[:, :, 3 * chunk : 3 * chunk + 3]
        fresh = noise.context(chunk, x0.shape)
        torch.testing.assert_close(committed.x, (1 - sigma) * x0 + sigma * fresh)
        assert committed.sigma == sigma
    assert [given.sigma for given in rolled.exits] == [1.0] * 5


class WholePast:
    """Keys and values of the committed video, all of it; a mask picks what is seen."""

    def __init__(self) -> None:
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.recording = True

    def place(self, start_frame: int, frames: int) -> None:
        pass

    def join(self, layer: int, k: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        k = rotate(k, turn)
        if self.recording:
            self.k.append(k)
            self.v.append(v)
            return k, v
        return torch.cat([self.k[layer], k], 1), torch.cat([self.v[layer], v], 1)


def explicit(model: WanDiT, context: Tensor, own: RolloutConfig, rolled: Rollout, *, detached: bool = True) -> Tensor:
    """The same estimates from two forwards over the whole video: of what was committed, without gradient and under the
    block-causal mask; and of the exit steps' inputs, which see that in place of one another."""
    tokens = ROWS * COLUMNS // 4
    mask = dense(causal_blocks(FRAMES, tokens, 3, own.cache), FRAMES * tokens)
    itself = torch.block_diag(*[torch.ones(3 * tokens, 3 * tokens)] * (FRAMES // 3)).bool()
    past = WholePast()
    # The last chunk was not committed; nothing sees what stands in for it here.
    committed = torch.cat([*(given.x for given in rolled.commits), torch.zeros(2, 4, 3, ROWS, COLUMNS)], 2)
    levels = [*(given.sigma for given in rolled.commits), 0.0]
    with torch.set_grad_enabled(not detached):
        model(committed, per_frame(levels), context, cache=past, mask=mask)
    past.recording = False
    x = torch.cat([given.x for given in rolled.exits], 2)
    timestep = per_frame([given.sigma for given in rolled.exits])
    flow = model(x, timestep, context, cache=past, mask=torch.cat([mask & ~itself, itself], 1))
    return x0_from_flow(x, flow, timestep[:, None, :, None, None] / 1000)


def per_frame(sigmas: list[float]) -> Tensor:
    return 1000 * torch.tensor(sigmas).repeat_interleave(3).expand(2, -1)


def gradients_of(model: WanDiT, latents: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    model.zero_grad()
    (latents * weights).mean().backward()
    names = model.state_dict().keys()
    return {name: p.grad.clone() for name, (_, p) in zip(names, model.named_parameters(), strict=True)}


@pytest.mark.parametrize("prepare", [lambda model: model, checkpoint_activations], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("u", [0.0, 0.5, None])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_gradients_are_those_of_a_block_causal_forward_with_a_detached_past(
    model: WanDiT, context: Tensor, cache: CacheConfig, u: float | None, prepare: Callable[[WanDiT], WanDiT]
) -> None:
    model, own = model.double(), replace(config(cache=cache), precision=torch.float64)
    context = context.double()
    reference = WanDiT(WAN).double()
    reference.load_state_dict(model.state_dict())
    rolled = rollout(prepare(model), context, own, noise=SeededNoise(7), shape=SHAPE, u=u, gradients=True)
    expected_latents = explicit(reference, context, own, rolled)
    torch.testing.assert_close(rolled.latents, expected_latents.float(), atol=1e-6, rtol=1e-5)
    got, expected = gradients_of(model, rolled.latents), gradients_of(reference, expected_latents)
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_past_that_is_not_detached_would_be_noticed(model: WanDiT, context: Tensor) -> None:
    """The reference above is worth something only if gradients through the past would differ."""
    own = config()
    rolled = rollout(model, context, own, noise=SeededNoise(7), shape=SHAPE, u=0.5, gradients=True)
    detached, kept = (gradients_of(model, explicit(model, context, own, rolled, detached=d)) for d in (True, False))
    assert any(not torch.allclose(detached[name], kept[name], atol=1e-6, rtol=1e-4) for name in kept)


def test_autocast_reaches_the_weights_whatever_ran_before(model: WanDiT, context: Tensor) -> None:
    """Autocast keeps casts of the weights: one made by a forward without gradient must not serve the exit step."""
    own = replace(config(), precision=torch.bfloat16)
    rollout(model, context, own, noise=SeededNoise(7), shape=SHAPE, u=0.9, gradients=True).latents.mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_a_length_of_no_whole_chunks_is_refused(model: WanDiT, context: Tensor) -> None:
    with pytest.raises(ValueError, match="multiple of the chunk"):
        rollout(model, context, config(), noise=SeededNoise(0), shape=(2, 4, 7, 4, 4), gradients=False)
