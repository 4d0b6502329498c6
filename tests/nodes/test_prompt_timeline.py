"""Prompts over time in CONDITIONING: texts read before the chunk size is known, joins, and the times in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diagdistill_pack.diag_core import SwitchPolicy
from diagdistill_pack.nodes.prompt_timeline import TIMELINE_KEY, PromptTimeline, join_conditions, read_prompts

A, B, C, D = (torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4))
SWITCH = SwitchPolicy("joint", True)


def conditioning(*contexts: torch.Tensor | None, **own: Any) -> list[Any]:
    return [[context, dict(own)] for context in contexts]


def join(*timed: tuple[str, list[Any]], fps: float = 16.0) -> list[Any]:
    return join_conditions(timed, fps=fps, blend_chunks=2, switch=SWITCH)


def prompts(joined: list[Any], number: int = 0) -> list[tuple[str, str]]:
    """(time, prompt by name) of one condition."""
    entries = joined[number][1][TIMELINE_KEY].entries
    names = {id(context): name for name, context in zip("ABCD", (A, B, C, D), strict=True)}
    return [(time, names[id(context)]) for time, context in entries]


def test_a_text_is_read_with_its_times_as_written():
    assert read_prompts("0s: a; b\n0.5s: c\n3C: d", 16.0) == [("0s", "a; b"), ("0.5s", "c"), ("3c", "d")]
    assert read_prompts("one prompt", 16.0) == [("0s", "one prompt")]


def test_an_order_that_hangs_on_the_chunk_size_is_left_to_the_sampler():
    # With chunks of 1 latent frame "2c" is before "1s" (latent frame 4), with chunks of 3 after it.
    read = read_prompts("0s: a\n2c: b\n1s: c", 16.0)
    assert read == [("0s", "a"), ("2c", "b"), ("1s", "c")]
    timeline = join(*((time, conditioning(x)) for (time, _), x in zip(read, (A, B, C), strict=True)))[0][1]
    assert [frame for frame, _ in timeline[TIMELINE_KEY].resolve(1)] == [0, 2, 4]
    with pytest.raises(ValueError, match="the prompt at 1s"):
        timeline[TIMELINE_KEY].resolve(3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("1s: a", "first prompt starts at 1s"),
        ("0s: a\n2s: b\n1s: c", "line 3.*1s comes after 2s"),
        ("0s: a\n3c: b\n2c: c", "line 3.*2c comes after 3c"),
        ("0s: a\n2c: b\n2c: c", "2c stands twice"),
        ("0s: a\n1x: b", "no unit of time"),
    ],
)
def test_what_no_chunk_size_heals_is_said_at_once(text, said):
    with pytest.raises(ValueError, match=said):
        read_prompts(text, 16.0)


def test_a_rate_that_cannot_be():
    with pytest.raises(ValueError, match="fps"):
        read_prompts("0s: a", 0.0)


def test_a_join_is_the_first_conditioning_with_the_prompts_in_time():
    joined = join(("0s", conditioning(A, pooled_output=None, strength=0.5)), ("2.5s", conditioning(B)))
    context, own = joined[0]
    assert context is A and own["strength"] == 0.5 and "pooled_output" in own
    timeline = own[TIMELINE_KEY]
    assert (timeline.fps, timeline.blend_chunks, timeline.switch) == (16.0, 2, SWITCH)
    assert prompts(joined) == [("0s", "A"), ("2.5s", "B")]
    assert timeline.resolve(3) == [(0, A), (10, B)]


def test_the_conditionings_that_are_joined_stay_as_they_were():
    before, after = conditioning(A), conditioning(B)
    join(("0s", before), ("1s", after))
    assert before == [[A, {}]] and after == [[B, {}]]


def test_each_condition_has_its_own_prompts_and_the_last_is_repeated():
    joined = join(("0s", conditioning(A, B)), ("1s", conditioning(C)), ("2s", conditioning(D, A)))
    assert prompts(joined, 0) == [("0s", "A"), ("1s", "C"), ("2s", "D")]
    assert prompts(joined, 1) == [("0s", "B"), ("1s", "C"), ("2s", "A")]


def test_more_conditions_than_the_first_has():
    with pytest.raises(ValueError, match="at 1s has 2 parts"):
        join(("0s", conditioning(A)), ("1s", conditioning(B, C)))


def test_a_conditioning_without_text():
    with pytest.raises(ValueError, match="at 1s holds no text"):
        join(("0s", conditioning(A)), ("1s", conditioning(None)))


def test_of_a_timeline_in_front_what_begins_later_is_cut():
    early = join(("0s", conditioning(A)), ("1s", conditioning(B)), ("3s", conditioning(C)))
    assert prompts(join(("0s", early), ("2s", conditioning(D)))) == [("0s", "A"), ("1s", "B"), ("2s", "D")]
    # A prompt that begins just where the next conditioning does is not shown.
    assert prompts(join(("0s", early), ("1s", conditioning(D)))) == [("0s", "A"), ("1s", "D")]


def test_of_a_timeline_behind_the_prompt_that_shows_then_and_the_later_ones_count():
    late = join(("0s", conditioning(A)), ("1s", conditioning(B)), ("3s", conditioning(C)))
    joined = join(("0s", conditioning(D)), ("2s", late))
    assert prompts(joined) == [("0s", "D"), ("2s", "B"), ("3s", "C")]


def test_timelines_of_two_rates():
    other = join(("0s", conditioning(A)), ("1s", conditioning(B)), fps=24.0)
    with pytest.raises(ValueError, match=r"24 pixel frames a second, this node 16"):
        join(("0s", other), ("2s", conditioning(C)))


def test_all_units_in_the_end():
    timeline = PromptTimeline((("0s", A), ("12f", B), ("9lf", C), ("5c", D)), 16.0, 0, SwitchPolicy())
    assert [frame for frame, _ in timeline.resolve(3)] == [0, 3, 9, 15]
    assert [frame for frame, _ in timeline.resolve(2)] == [0, 3, 9, 10]
    with pytest.raises(ValueError, match="5c begins at latent frame 5"):
        timeline.resolve(1)
