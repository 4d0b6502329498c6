"""Prompts that arrive while a video is made."""

from __future__ import annotations

import threading

import pytest
import torch
from goldens_reader import small_model

from diag_core import CacheConfig, DiagonalSchedule, SamplerState, SeededNoise, SwitchPolicy, Timeline, stream_chunks
from diag_core.live import MAX_PREPARED, LivePrompts, LiveTimeline, follow

SAMPLING = dict(noise=SeededNoise(5), height=4, width=4, cache=CacheConfig(9, 3))
SCHEDULE = DiagonalSchedule.parse("2 1*9 @ 2")


def encode(prompt: str) -> torch.Tensor:
    if "unknown" in prompt:
        raise ValueError("no such word")
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(sum(prompt.encode())))


def live_video(model, says: dict[int, list[str]], *, blend: int = 0, chunks: int = 8, **options):
    """Chunks of a live video in which `says[n]` arrive while chunk n is sampled, the prompts that took, and errors."""
    live = LivePrompts(encode, on_error=lambda prompt, error: errors.append((prompt, str(error))), **options)
    live.prepare()
    errors: list[tuple[str, str]] = []
    timeline, state = LiveTimeline([(0, encode("first"))], blend), SamplerState()
    stream = stream_chunks(
        model, timeline, SCHEDULE, num_latent_frames=3 * chunks, state=state, switch=SwitchPolicy(), **SAMPLING
    )
    made = []
    for chunk in follow(stream, live, [timeline], state, 3):
        made.append(chunk.latents)
        for prompt in says.get(chunk.index, []):
            live.say(prompt)
    return torch.cat(made, dim=2), live, errors, timeline


@pytest.fixture(scope="module")
def model():
    return small_model(num_layers=2)


@pytest.mark.parametrize("blend", [0, 3])
@pytest.mark.parametrize(
    "says",
    [
        {2: ["second"]},
        {0: ["second"], 1: ["third"], 2: ["first"], 3: ["second"]},
        {1: ["never shown", "second"], 6: ["third"]},
    ],
)
def test_the_same_switches_as_a_timeline_make_the_same_video(model, says, blend) -> None:
    video, live, errors, _ = live_video(model, says, blend=blend)
    contexts = {text: encode(text) for text in ("first", "second", "third")}
    planned = [(0, contexts["first"]), *((s.start_latent_frame, contexts[s.prompt]) for s in live.log)]
    stream = stream_chunks(model, Timeline(planned, blend), SCHEDULE, num_latent_frames=24, **SAMPLING)
    again = torch.cat([chunk.latents for chunk in stream], dim=2)
    assert torch.equal(video, again) and not errors
    assert [s.start_latent_frame for s in live.log] == [3 * (n + 1) for n in says]
    assert [s.prompt for s in live.log] == [prompts[-1] for prompts in says.values()]
    still, *_ = live_video(model, {}, blend=blend)
    first = 3 * (min(says) + 1)
    assert torch.equal(video[:, :, :first], still[:, :, :first]) and not torch.equal(video, still)


def test_a_prompt_that_cannot_be_encoded_is_reported_and_the_video_goes_on(model) -> None:
    video, live, errors, _ = live_video(model, {1: ["unknown"], 3: ["second"]})
    assert errors == [("unknown", "no such word")] and [s.prompt for s in live.log] == ["second"]
    assert video.shape[2] == 24


def test_what_is_no_text_is_refused_before_it_is_sampled() -> None:
    live = LivePrompts(encode)
    with pytest.raises(ValueError, match=r"cannot be read: .* at character 3"):
        live.say("a \udcff cat")  # a byte of the terminal that is no UTF-8


def test_slots_are_encoded_beforehand_and_asked_for_by_number(model) -> None:
    seen: list[str] = []

    def counting(prompt: str) -> torch.Tensor:
        seen.append(prompt)
        return encode(prompt)

    live = LivePrompts(counting, prepared=["second", "third"])
    live.prepare()
    assert seen == ["second", "third"]
    assert live.say("2") == "third" and live.say(" 3 ") == "3"
    timeline = LiveTimeline([(0, encode("first"))])
    live.say("2")
    switch = live.apply([timeline], 6, 3)
    assert switch is not None and switch.prompt == "third" and seen == ["second", "third"]
    assert switch.entry().label == "6lf" and switch.waited >= 0
    assert live.apply([timeline], 9, 3) is None  # taken once


def test_what_no_prompt_can_be_is_refused() -> None:
    live = LivePrompts(encode)
    for prompt, why in (("  ", "empty"), ("x" * 10_001, "10001 characters")):
        with pytest.raises(ValueError, match=why):
            live.say(prompt)
    with pytest.raises(ValueError, match="at most"):
        LivePrompts(encode, prepared=["a"] * (MAX_PREPARED + 1))


@pytest.mark.parametrize("blend", [0, 1, 4, 40])
def test_a_timeline_that_grows_for_ever_takes_no_more_memory(blend) -> None:
    timeline = LiveTimeline([(0, encode("first"))], blend)
    live = LivePrompts(encode)
    keys = set()
    for chunk in range(1, 400):
        live.say(f"prompt {chunk % 150}")
        assert live.apply([timeline], 3 * chunk, 3) is not None
        now = timeline.at(3 * chunk, 3)
        assert now.since_switch == 0 and now.key not in keys
        keys.add(now.key)
        assert len(timeline.entries) <= 20 and len(live._contexts) <= MAX_PREPARED


def test_many_threads_may_speak_at_once(model) -> None:
    live = LivePrompts(encode)
    threads = [threading.Thread(target=lambda n=n: [live.say(f"{n} {i}") for i in range(200)]) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timeline = LiveTimeline([(0, encode("first"))])
    switch = live.apply([timeline], 3, 3)
    assert switch is not None and switch.prompt.endswith(" 199") and len(timeline.entries) == 2


def test_a_video_without_end_needs_a_window_and_goes_on(model) -> None:
    options = SAMPLING | {"cache": CacheConfig(None)}
    with pytest.raises(ValueError, match="needs a window"):
        stream_chunks(model, encode("a"), SCHEDULE, num_latent_frames=None, **options)
    endless = stream_chunks(model, encode("a"), SCHEDULE, num_latent_frames=None, **SAMPLING)
    finite = stream_chunks(model, encode("a"), SCHEDULE, num_latent_frames=9, **SAMPLING)
    for one, other in zip(finite, endless, strict=False):
        assert torch.equal(one.latents, other.latents)
    assert next(endless).index == 3 or next(endless).index == 4
