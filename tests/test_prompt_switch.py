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
