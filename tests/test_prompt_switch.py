"""Prompt switches while sampling: what is renewed, what is recomputed, what stays."""

from __future__ import annotations

import pytest
import torch
from goldens_reader import small_model

from diag_core import (
    CacheConfig,
    ContextPolicy,
    DiagonalSchedule,
    SamplerState,
    SeededNoise,
    SwitchPolicy,
    Timeline,
    generate,
    stream_chunks,
)
from diag_core.noise_schedule import add_noise
from diag_core.rope import rotate, rotation

SCHEDULE = DiagonalSchedule.parse("2")
POLICY = ContextPolicy.noised(0.2)


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return small_model()


def run(model, context, frames=21, window=9, sink=3, **options):
    cache = CacheConfig(window_frames=window, sink_frames=sink)
    defaults = dict(cache=cache, policy=POLICY, noise=SeededNoise(0), height=4, width=4, num_latent_frames=frames)
    return generate(model, context, options.pop("schedule", SCHEDULE), **(defaults | options))


def test_nothing_changes_before_the_switch_and_everything_after(model):
    plain, switched = run(model, prompt(1)), run(model, Timeline([(0, prompt(1)), (8, prompt(2))]))
    assert torch.equal(plain[:, :, :9], switched[:, :, :9])  # frame 8 lies in chunk 6..8, the switch waits for 9
    for start in range(9, 21, 3):
        assert not torch.allclose(plain[:, :, start : start + 3], switched[:, :, start : start + 3], atol=1e-3)


def test_cross_attention_is_renewed_without_recache_too(model):
    off = SwitchPolicy(recache="off")
    switched = run(model, Timeline([(0, prompt(1)), (9, prompt(2))]), switch=off)
    assert not torch.allclose(switched[:, :, 9:], run(model, prompt(1))[:, :, 9:], atol=1e-3)


def test_a_switch_to_the_same_words_changes_nothing(model):
    """Recommitting under the same prompt rebuilds what was there, as long as the whole past is in the window."""
    same = Timeline([(0, prompt(1)), (9, prompt(1).clone())])
    assert torch.allclose(run(model, same, window=None), run(model, prompt(1), window=None), atol=1e-4)
    assert torch.allclose(run(model, same, window=24), run(model, prompt(1), window=24), atol=1e-4)
    with_sink = SwitchPolicy(sink=True)
    assert torch.allclose(run(model, same, window=24, switch=with_sink), run(model, prompt(1), window=24), atol=1e-4)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(("window", "sink"), [(9, 3), (12, 3), (8, 2), (10, 4), (6, 0), (None, 0)])
@pytest.mark.parametrize("sink_too", [False, True])
@pytest.mark.parametrize("recache", ["chunks", "joint"])
def test_recache_leaves_the_cache_as_full_as_it_was(model, window, sink, sink_too, recache, positions):
    cache = CacheConfig(window_frames=window, sink_frames=sink, positions=positions)
    before, after = SamplerState(), SamplerState()
    switch = SwitchPolicy(recache=recache, sink=sink_too)
    timeline = Timeline([(0, prompt(1)), (15, prompt(2))])
    for state, context in ((before, prompt(1)), (after, timeline)):
        run(model, context, cache=cache, switch=switch, state=state, frames=21)
    a, b = before.caches[0], after.caches[0]
    assert a.held == b.held and a.held_frames() == b.held_frames()
    assert a._visible(a.held) == b._visible(b.held)
    assert torch.isfinite(b.k[0]).all()


def test_recommitted_keys_are_those_of_the_new_prompt(model):
    """The window's keys equal those of a run that had the new prompt when these chunks were committed."""
    cache = CacheConfig(window_frames=None)
    state = SamplerState()
    timeline = Timeline([(0, prompt(1)), (6, prompt(2))])
    chunks = list(
        stream_chunks(
            model, timeline, SCHEDULE, cache=cache, policy=POLICY, noise=SeededNoise(0), height=4, width=4,
            num_latent_frames=9, state=state,
        )
    )  # fmt: skip
    given = torch.cat([c.latents for c in chunks[:2]], 2)

    class SameContextNoise(SeededNoise):
        def context(self, chunk, shape):
            return super().context(-1 - chunk if chunk < 0 else chunk, shape)

    other = SamplerState()
    generate(
        model, prompt(2), SCHEDULE, cache=cache, policy=POLICY, noise=SameContextNoise(0), height=4, width=4,
        num_latent_frames=6, initial_latents=given, state=other,
    )  # fmt: skip
    for mine, theirs in zip(state.caches[0].k, other.caches[0].k, strict=True):
        n = theirs.shape[1]
        assert torch.allclose(mine[:, :n], theirs, atol=1e-5)


def expected_keys(model, context, finished, positions, sigma, joint):
    """Keys of the last layer of chunks committed one after the other, by one forward under an explicit mask."""
    x = torch.cat(finished, 2)
    chunk = torch.arange(x.shape[2]) // 3
    order = chunk[:, None] >= chunk[None, :]
    if joint:  # the window is one bidirectional piece after the sink
        order = (chunk[:, None] > 0) | (chunk[None, :] == 0)
    mask = order.repeat_interleave(4, 0).repeat_interleave(4, 1)
    seen = {}
    hook = model.blocks[-1].self_attn.norm_k.register_forward_hook(lambda _, __, out: seen.update(k=out))
    with torch.no_grad():
        timestep = torch.full((1, x.shape[2]), 1000 * sigma)
        model(x, timestep, context, mask=mask, frame_positions=positions)
    hook.remove()
    return rotate(seen["k"].unflatten(-1, (2, 12)), rotation(positions, 2, 2, 12, torch.device("cpu")))


@pytest.mark.parametrize("joint", [False, True])
def test_a_window_that_has_lost_chunks_is_recomputed_without_the_stale_ones(model, joint):
    """After eviction: sink and ring are committed anew, and see nothing of their old keys."""
    noise, sigma = SeededNoise(0), 0.2
    switch = SwitchPolicy(recache="joint" if joint else "chunks", sink=True)
    state, chunks = SamplerState(), []
    timeline = Timeline([(0, prompt(1)), (18, prompt(2))])
    options = dict(policy=POLICY, noise=noise, height=4, width=4, switch=switch, state=state)
    cache = CacheConfig(window_frames=12, sink_frames=3)
    one_step = DiagonalSchedule.parse("1")
    for chunk in stream_chunks(model, timeline, one_step, cache=cache, num_latent_frames=21, **options):
        chunks.append(chunk.latents)
    # Chunks 0 (sink), 3, 4 and 5 were recomputed for chunk 6, which then took the slots of chunk 3.
    noisy = [add_noise(chunks[i], noise.context(i, chunks[0].shape), sigma) for i in (0, 3, 4, 5)]
    wanted = expected_keys(model, prompt(2), noisy, (0, 1, 2, *range(9, 18)), sigma, joint).split(12, 1)
    sink, _, fourth, fifth = state.caches[0].k[-1].split(12, 1)
    for mine, theirs in zip((sink, fourth, fifth), (wanted[0], wanted[2], wanted[3]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("recache", ["chunks", "joint"])
def test_a_ring_that_holds_parts_of_chunks_is_recomputed(model, recache):
    cache = CacheConfig(window_frames=7, sink_frames=3)
    state = SamplerState()
    timeline = Timeline([(0, prompt(1)), (15, prompt(2))])
    latents = run(model, timeline, cache=cache, switch=SwitchPolicy(recache=recache), state=state)
    assert torch.isfinite(latents).all() and state.caches[0].held == 21


def test_a_switch_to_the_same_tensor_is_none(model):
    forwards, one = [], prompt(1)
    same = run(model, Timeline([(0, one), (9, one)]), on_forward=forwards.append)
    assert torch.equal(same, run(model, one))
    assert not [f for f in forwards if f.kind == "recache"]


def test_the_sink_is_kept_or_recomputed_as_asked(model):
    timeline = Timeline([(0, prompt(1)), (12, prompt(2))])
    states = {}
    for sink in (False, True):
        states[sink] = SamplerState()
        run(model, timeline, switch=SwitchPolicy(sink=sink), state=states[sink], frames=15)
    plain = SamplerState()
    run(model, prompt(1), state=plain, frames=15)
    tokens = 3 * 4
    layer = 1  # the first layer's keys do not depend on the prompt
    old = plain.caches[0].k[layer][:, :tokens]
    assert torch.equal(states[False].caches[0].k[layer][:, :tokens], old)
    assert not torch.allclose(states[True].caches[0].k[layer][:, :tokens], old, atol=1e-4)


def test_a_blend_recaches_once_at_its_end(model):
    timeline = Timeline([(0, prompt(1)), (6, prompt(2))], blend_chunks=3)
    forwards = []
    run(model, timeline, on_forward=forwards.append)
    recaches = [f for f in forwards if f.kind == "recache"]
    # The blend takes chunks 2, 3, 4; at chunk 4 the ring of 6 holds chunks 2 and 3.
    assert [f.chunk for f in recaches] == [2, 3]
    last = forwards.index(recaches[-1])
    assert (forwards[last + 1].kind, forwards[last + 1].chunk) == ("step", 4)


def test_joint_recache_takes_one_forward(model):
    forwards = []
    timeline = Timeline([(0, prompt(1)), (12, prompt(2))])
    run(model, timeline, switch=SwitchPolicy(recache="joint"), on_forward=forwards.append)
    assert sum(f.kind == "recache" for f in forwards) == 1


def test_chunks_after_a_switch_may_take_more_steps(model):
    chunks = stream_chunks(
        model, Timeline([(0, prompt(1)), (6, prompt(2))]), DiagonalSchedule.parse("2 1 @ 4 3"), noise=SeededNoise(0),
        height=4, width=4, num_latent_frames=15, cache=CacheConfig(window_frames=9),
    )  # fmt: skip
    assert [c.steps for c in chunks] == [2, 1, 4, 3, 1]


def test_an_unknown_way_to_recache_is_refused():
    with pytest.raises(ValueError, match="recache must be"):
        SwitchPolicy(recache="all")
