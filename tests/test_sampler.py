"""The loop over chunks: lengths, given latents, guidance, continuation, saving, cancelling, determinism."""

from __future__ import annotations

import itertools
import warnings

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
    WanDiT,
    generate,
    stream_chunks,
)
from diag_core.noise_schedule import add_noise

SCHEDULE = DiagonalSchedule.parse("321")
WINDOW = CacheConfig(window_frames=9, sink_frames=3)


def context(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(seed))


def run(model: WanDiT, frames: int = 15, **options) -> torch.Tensor:
    defaults = dict(noise=SeededNoise(5), num_latent_frames=frames, height=4, width=4, cache=WINDOW)
    prompt = options.pop("context", None)
    schedule = options.pop("schedule", SCHEDULE)
    return generate(model, context() if prompt is None else prompt, schedule, **(defaults | options))


@pytest.fixture(scope="module")
def model() -> WanDiT:
    return small_model(num_layers=2)


def test_a_longer_video_begins_the_same(model):
    assert torch.equal(run(model, 9), run(model, 21)[:, :, :9])


def test_a_length_between_chunks_is_sampled_whole_and_trimmed(model):
    whole = run(model, 9)
    assert torch.equal(run(model, 7), whole[:, :, :7])
    sizes = [
        c.latents.shape[2]
        for c in stream_chunks(
            model, context(), SCHEDULE, noise=SeededNoise(5), num_latent_frames=7, height=4, width=4, cache=WINDOW
        )
    ]
    assert sizes == [3, 3, 1]


def test_chunks_say_where_they_stand(model):
    chunks = list(
        stream_chunks(
            model, context(), SCHEDULE, noise=SeededNoise(0), num_latent_frames=9, height=4, width=4, cache=WINDOW
        )
    )
    assert [(c.index, c.start_frame, c.steps) for c in chunks] == [(0, 0, 3), (1, 3, 2), (2, 6, 1)]


def test_samples_of_a_batch_do_not_mix(model):
    both = torch.cat((context(seed=1), context(seed=2)))
    together = run(model, context=both)
    for b in range(2):
        alone = run(model, context=both[b : b + 1], noise=SeededNoise(5 + b))
        assert torch.allclose(together[b : b + 1], alone, atol=1e-5)


def test_the_global_random_state_is_left_alone_and_not_used(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(run(model), first)


def test_seeds_differ(model):
    assert not torch.allclose(run(model), run(model, noise=SeededNoise(6)), atol=1e-2)


@pytest.mark.parametrize(
    ("policy", "commits"),
    [
        (ContextPolicy.last_step(), 0),
        (ContextPolicy.clean(), 3),
        (ContextPolicy.noised(0.1), 3),
        (ContextPolicy.kv_noise(100.0), 1),  # the one-step chunk ends at 1000, not at 100
        (ContextPolicy.kv_noise(100.0, reuse_last_step=False), 3),
        (ContextPolicy.kv_noise(50.0), 3),
    ],
)
def test_commits_cost_a_forward_only_when_the_last_step_cannot_be_reused(model, policy, commits):
    forwards = []
    run(model, 9, policy=policy, on_forward=forwards.append)
    assert sum(f.kind == "commit" for f in forwards) == commits
    assert [(f.step, f.steps) for f in forwards if f.kind == "step"] == [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2), (1, 1)]


def test_policies_lead_to_different_videos(model):
    policies = (ContextPolicy.last_step(), ContextPolicy.clean(), ContextPolicy.noised(0.3))
    results = [run(model, policy=policy) for policy in policies]
    for a, b in itertools.combinations(results, 2):
        assert torch.equal(a[:, :, :3], b[:, :, :3])  # the first chunk has no past
        assert not torch.allclose(a[:, :, 3:], b[:, :, 3:], atol=1e-3)


class Exact:
    """A model that knows the answer: its flow leads from any x to a fixed x0."""

    def __init__(self, x0: torch.Tensor) -> None:
        self.config, self.dtype, self.device = small_model().config, torch.float32, torch.device("cpu")
        self.x0, self.levels = x0, []

    def __call__(self, latents, timestep, context, cache=None, start_frame=0):
        cache.place(start_frame, latents.shape[2])
        sigma = timestep[0].item() / 1000
        self.levels.append(sigma)
        return (latents - self.x0[:, :, start_frame : start_frame + latents.shape[2]]) / max(sigma, 1e-9)


def test_euler_follows_the_flow_and_renoise_reaches_the_same_end_on_an_exact_model():
    x0 = torch.randn(1, 16, 9, 4, 4)
    for step in ("renoise", "euler"):
        model = Exact(x0)
        assert torch.allclose(run(model, 9, step=step), x0, atol=1e-5)
        assert model.levels == pytest.approx([1, 0.9375, 5 / 14, 1, 5 / 14, 1])


def test_euler_equals_its_formula(model):
    """x goes to x + (next sigma - sigma) flow, with the last step to 0."""
    latents = run(model, 3, step="euler", schedule=DiagonalSchedule.parse("1000,600,300"))
    sigmas = DiagonalSchedule.parse("1000,600,300").sigmas(0)
    x = SeededNoise(5).initial(0, (1, 16, 3, 4, 4))
    with torch.no_grad():
        for sigma, after in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
            x = x + (after - sigma) * model(x, torch.tensor([1000 * sigma]), context())
    assert torch.allclose(latents, x, atol=1e-5)


def test_guidance_is_the_textbook_formula_with_a_cache_of_its_own(model):
    negative = context(seed=9)
    latents = run(model, 3, cfg=3.0, negative=negative, schedule=DiagonalSchedule.parse("1"))
    x = SeededNoise(5).initial(0, (1, 16, 3, 4, 4))
    with torch.no_grad():
        cond, uncond = (model(x, torch.tensor([1000.0]), c) for c in (context(), negative))
    assert torch.allclose(latents, x - (uncond + 3 * (cond - uncond)), atol=1e-4)
    # The past of the unconditional branch must be its own: with equal prompts guidance changes nothing.
    assert torch.allclose(run(model, cfg=3.0, negative=context()), run(model), atol=1e-4)


def test_guidance_without_a_negative_is_refused(model):
    with pytest.raises(ValueError, match="needs a negative prompt"):
        run(model, cfg=3.0)


# -- given latents ----------------------------------------------------------------------------------------------------


def test_given_latents_come_back_and_are_attended_to(model):
    given = torch.randn(1, 16, 6, 4, 4)
    latents = run(model, 12, initial_latents=given)
    assert torch.equal(latents[:, :, :6], given) and latents.shape[2] == 12
    other = run(model, 12, initial_latents=given + 1)
    assert not torch.allclose(latents[:, :, 6:], other[:, :, 6:], atol=1e-3)


def test_given_chunks_are_numbered_backwards_and_sampled_ones_from_zero(model):
    chunks = stream_chunks(
        model, context(), SCHEDULE, noise=SeededNoise(0), num_latent_frames=12, height=4, width=4, cache=WINDOW,
        initial_latents=torch.randn(1, 16, 6, 4, 4),
    )  # fmt: skip
    assert [(c.index, c.start_frame, c.steps) for c in chunks] == [(-1, 0, 0), (-2, 3, 0), (0, 6, 3), (1, 9, 2)]


def test_given_latents_are_committed_at_the_policys_level(model):
    """Committing by hand, then sampling with the same cache contents, gives the same chunk."""
    given = torch.randn(1, 16, 3, 4, 4)
    noise, sigma = SeededNoise(5), 0.25
    one_step = DiagonalSchedule.parse("1")
    latents = run(model, 6, initial_latents=given, policy=ContextPolicy.noised(sigma), schedule=one_step)
    noisy = add_noise(given, noise.context(-1, given.shape), sigma)
    x = noise.initial(3, (1, 16, 3, 4, 4))
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[:12, 12:] = False  # the given chunk does not see the sampled one
    t = torch.tensor([[1000 * sigma] * 3 + [1000.0] * 3])
    with torch.no_grad():
        flow = model(torch.cat((noisy, x), 2), t, context(), mask=mask)
    assert torch.allclose(latents[:, :, 3:], x - flow[:, :, 3:], atol=1e-4)


def test_a_single_image_frame_is_taken_with_a_warning(model):
    with pytest.warns(UserWarning, match="single image"):
        latents = run(model, 7, initial_latents=torch.randn(1, 16, 1, 4, 4))
    assert latents.shape[2] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, 7, initial_latents=torch.randn(1, 16, 3, 4, 4))


def test_given_latents_that_do_not_divide_are_refused(model):
    with pytest.raises(ValueError, match="5 given latent frames do not divide into chunks of 3"):
        run(model, 9, initial_latents=torch.randn(1, 16, 5, 4, 4))
    with pytest.raises(ValueError, match="initial_latents must be"):
        run(model, 9, initial_latents=torch.randn(1, 16, 3, 6, 4))


def test_offsets_place_a_continuation_in_the_schedule_and_the_positions(model):
    chunks = list(
        stream_chunks(
            model, context(), SCHEDULE, noise=SeededNoise(0), num_latent_frames=6, height=4, width=4, cache=WINDOW,
            initial_latents=torch.randn(1, 16, 3, 4, 4), first_chunk=1, first_frame=30,
        )
    )  # fmt: skip
    assert [(c.index, c.start_frame, c.steps) for c in chunks] == [(-1, 30, 0), (1, 33, 2)]


def test_given_latents_are_seen_even_when_chunks_take_one_step_from_pure_noise(model):
    one_step = DiagonalSchedule.parse("1")
    a, b = (run(model, 6, schedule=one_step, initial_latents=torch.full((1, 16, 3, 4, 4), x)) for x in (0.0, 1.0))
    assert not torch.allclose(a[:, :, 3:], b[:, :, 3:], atol=1e-3)


def test_what_a_consumer_does_to_a_chunk_does_not_reach_the_video(model):
    timeline = Timeline([(0, context()), (6, context(seed=3))])
    options = dict(noise=SeededNoise(5), num_latent_frames=12, height=4, width=4, cache=WINDOW)
    kept = []
    for chunk in stream_chunks(model, timeline, SCHEDULE, **options):
        kept.append(chunk.latents.clone())
        chunk.latents.zero_()
    assert torch.equal(torch.cat(kept, 2), run(model, 12, context=timeline))


def test_a_video_may_begin_in_inference_mode_and_go_on_outside(model):
    """ComfyUI runs its nodes in inference mode, which is a thread's own; a worker thread is not in it."""
    options = dict(noise=SeededNoise(5), num_latent_frames=12, height=4, width=4, cache=WINDOW)
    with torch.inference_mode():
        stream = stream_chunks(model, context(), SCHEDULE, **options)
        parts = [next(stream).latents]
    parts += [chunk.latents for chunk in stream]
    assert torch.equal(torch.cat(parts, 2), run(model, 12))


@pytest.mark.parametrize("policy", [ContextPolicy.noised(0.3), ContextPolicy.clean()])
def test_guidance_commits_both_branches(model, policy):
    """The second chunk, against one forward for each branch under an explicit mask."""
    negative, scale = context(seed=9), 3.0
    one_step = DiagonalSchedule.parse("1")
    latents = run(model, 6, schedule=one_step, policy=policy, cfg=scale, negative=negative)
    noise, shape = SeededNoise(5), (1, 16, 3, 4, 4)
    sigma = policy.sigma
    first = add_noise(latents[:, :, :3], noise.context(0, shape), sigma)
    x = noise.initial(3, shape)
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[:12, 12:] = False
    t = torch.tensor([[1000 * sigma] * 3 + [1000.0] * 3])
    with torch.no_grad():
        cond, uncond = (model(torch.cat((first, x), 2), t, c, mask=mask)[:, :, 3:] for c in (context(), negative))
    assert torch.allclose(latents[:, :, 3:], x - (uncond + scale * (cond - uncond)), atol=1e-3)


# -- state ------------------------------------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"policy": ContextPolicy.noised(0.2)},
    {"cache": CacheConfig(window_frames=None)},
    {"cache": CacheConfig(window_frames=8, sink_frames=2, positions="relative")},
    {"cfg": 2.0, "negative": context(seed=4)},
    {"initial_latents": torch.ones(1, 16, 3, 4, 4)},
    {"context": Timeline([(0, context()), (8, context(seed=3))])},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_saved_after_any_chunk_and_resumed_elsewhere_it_goes_on_the_same(model, tmp_path, settings, stop):
    whole = run(model, 18, **settings)
    state = SamplerState()
    options = dict(noise=SeededNoise(5), num_latent_frames=18, height=4, width=4, cache=WINDOW, state=state) | settings
    prompt = options.pop("context", context())
    first = [c.latents for c in itertools.islice(stream_chunks(model, prompt, SCHEDULE, **options), stop)]
    state.save(tmp_path / "state.safetensors")
    restored = SamplerState.load(tmp_path / "state.safetensors")
    rest = generate(small_model(), prompt, SCHEDULE, **(options | {"state": restored}))
    assert torch.equal(torch.cat((*first, rest), 2), whole)


@pytest.mark.parametrize("window", [9, None])
def test_extending_a_trimmed_video_equals_one_longer_run(model, window):
    state = SamplerState()
    cache = CacheConfig(window_frames=window)
    first = run(model, 7, state=state, cache=cache)
    assert torch.equal(torch.cat((first, run(model, 17, state=state, cache=cache)), 2), run(model, 17, cache=cache))


@pytest.mark.parametrize("settings", SETTINGS)
def test_cancelled_at_any_forward_it_goes_on_as_if_nothing_had_been(model, settings):
    whole = run(model, 15, **settings)
    count = itertools.count()
    run(model, 15, on_forward=lambda _: next(count), **settings)
    for stop in range(1, next(count), 3):
        state, seen = SamplerState(), itertools.count(1)

        def cancel(_, seen=seen, stop=stop):
            if next(seen) == stop:
                raise KeyboardInterrupt

        options = dict(noise=SeededNoise(5), num_latent_frames=15, height=4, width=4, cache=WINDOW) | settings
        prompt = options.pop("context", context())
        done = []
        with pytest.raises(KeyboardInterrupt):
            done.extend(
                c.latents
                for c in _collect(
                    done, stream_chunks(model, prompt, SCHEDULE, state=state, on_forward=cancel, **options)
                )
            )
        rest = generate(model, prompt, SCHEDULE, state=state, **options)
        assert torch.equal(torch.cat((*[c.latents for c in done], rest), 2), whole), stop


def _collect(into, chunks):
    for chunk in chunks:
        into.append(chunk)
    return ()


@pytest.mark.parametrize("window", [9, None])
def test_a_trimmed_video_is_extended_from_a_file_too(model, window, tmp_path):
    state, cache = SamplerState(), CacheConfig(window_frames=window)
    first = run(model, 7, state=state, cache=cache)
    state.save(tmp_path / "state.safetensors")
    rest = run(model, 11, state=SamplerState.load(tmp_path / "state.safetensors"), cache=cache)
    assert torch.equal(torch.cat((first, rest), 2), run(model, 11, cache=cache))


def test_a_state_without_window_may_go_on_to_less_than_was_planned(model, tmp_path):
    cache, state = CacheConfig(window_frames=None), SamplerState()
    options = dict(noise=SeededNoise(5), height=4, width=4, cache=cache)
    chunks = stream_chunks(model, context(), SCHEDULE, num_latent_frames=21, state=state, **options)
    first = [next(chunks).latents for _ in range(2)]
    state.save(tmp_path / "state.safetensors")
    rest = run(model, 12, state=SamplerState.load(tmp_path / "state.safetensors"), cache=cache)
    assert torch.equal(torch.cat((*first, rest), 2), run(model, 12, cache=cache))


def test_what_is_kept_of_the_past_does_not_grow(model):
    state, sizes = SamplerState(), []
    options = dict(noise=SeededNoise(5), num_latent_frames=120, height=4, width=4, cache=WINDOW, state=state)
    for _ in stream_chunks(model, context(), DiagonalSchedule.parse("1"), **options):
        sizes.append(len(state.history))
    assert max(sizes) == 3 and sizes[-1] == 3  # the sink's chunk and the ring's two


def test_a_state_before_the_first_chunk_cannot_be_saved(model, tmp_path):
    state = SamplerState()
    options = dict(noise=SeededNoise(5), num_latent_frames=6, height=4, width=4, cache=WINDOW, state=state)
    stream_chunks(model, context(), SCHEDULE, **options)
    with pytest.raises(ValueError, match="nothing to save"):
        state.save(tmp_path / "state.safetensors")


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("goes_on", ["without the switch", "with recache off", "from a file"])
def test_cancelled_around_a_switch_it_goes_on_with_any_prompt(model, sink, goes_on, tmp_path):
    """Whatever was half recomputed is made good under the prompt that goes on: as if the switch had been to it."""
    options = dict(
        noise=SeededNoise(5), num_latent_frames=18, height=4, width=4, cache=WINDOW, policy=ContextPolicy.noised(0.2)
    )
    one_step = DiagonalSchedule.parse("1")
    timeline = Timeline([(0, context()), (12, context(seed=3))])
    other = Timeline([(0, context()), (12, context(seed=4))])
    expected = run(model, 18, context=other, switch=SwitchPolicy(sink=sink), schedule=one_step, **options)
    for stop in range(9, 12):  # 4 chunks of 2 forwards, then those of the recache and the first step after it
        state, seen = SamplerState(), itertools.count(1)

        def cancel(_, seen=seen, stop=stop):
            if next(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(
                model, 18, context=timeline, switch=SwitchPolicy(sink=sink), state=state, on_forward=cancel,
                schedule=one_step, **options,
            )  # fmt: skip
        assert state.frame == 12
        switch = SwitchPolicy(sink=sink)
        if goes_on == "with recache off":
            switch = SwitchPolicy(recache="off", sink=sink)
        if goes_on == "from a file":
            state.save(tmp_path / "state.safetensors")
            state = SamplerState.load(tmp_path / "state.safetensors")
        prompt = other.entries[1][1] if goes_on == "without the switch" else other
        rest = run(model, 18, context=prompt, switch=switch, state=state, schedule=one_step, **options)
        assert torch.equal(rest, expected[:, :, 12:]), stop


def test_a_state_of_another_video_is_refused(model):
    state = SamplerState()
    run(model, 6, state=state)
    with pytest.raises(ValueError, match="the state is of a video with another schedule"):
        run(model, 12, state=state, schedule=DiagonalSchedule.parse("2"))
    with pytest.raises(ValueError, match="has handed out all 6"):
        run(model, 6, state=state)


def test_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="nothing to save"):
        SamplerState().save(path)
    path.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="cannot be read as a saved state"):
        SamplerState.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_chunk_too_large_for_the_window_is_refused_before_any_forward(model):
    forwards = []
    with pytest.raises(ValueError, match="a chunk of 7 latent frames does not fit a window of 9 with a sink of 3"):
        run(model, chunk_frames=7, on_forward=forwards.append)
    assert not forwards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": "heun"}, "step must be one of renoise, euler"),
        ({"height": 5}, "multiple of 2"),
        ({"frames": 0}, "at least 1"),
        ({"context": torch.randn(1, 6, 9)}, "9 wide"),
        ({"first_frame": -1}, "count from 0"),
        ({"cfg": 2.0, "negative": torch.randn(2, 6, 8)}, "batch size"),
    ],
)
def test_what_does_not_fit_is_refused_before_or_at_the_first_chunk(model, options, message):
    with pytest.raises(ValueError, match=message):
        run(model, **({"frames": 15} | options))
