"""Conditioning lookup: switches, blends and recaches, against a plain walk over the chunks of a whole video."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diag_core.timeline import Timeline, as_timeline


def filled(value: float, length: int = 2, batch: int = 1) -> Tensor:
    return torch.full((batch, length, 4), value)


def level(context: Tensor) -> float:
    return float(context.flatten()[0])


def test_a_bare_tensor_never_switches():
    context = filled(1.0)
    timeline = as_timeline(context)
    for start in (0, 3, 3000):
        got = timeline.at(start, 3)
        assert got.context is context and got.since_switch is None and not got.recache
        assert got.key == timeline.at(0, 3).key
    assert as_timeline(timeline) is timeline


@pytest.mark.parametrize(("switch", "taken_at"), [(1, 3), (2, 3), (3, 3), (4, 6), (6, 6)])
def test_a_switch_is_taken_by_the_first_chunk_at_or_after_it(switch, taken_at):
    timeline = Timeline([(0, filled(0.0)), (switch, filled(1.0))])
    for start in range(0, 15, 3):
        got = timeline.at(start, 3)
        assert level(got.context) == float(start >= taken_at)
        assert got.since_switch == (None if start < taken_at else (start - taken_at) // 3)
        assert got.recache == (start == taken_at)


def test_of_two_switches_inside_one_chunk_the_later_wins():
    timeline = Timeline([(0, filled(0.0)), (4, filled(1.0)), (5, filled(2.0))], blend_chunks=2)
    assert level(timeline.at(3, 3).context) == 0.0
    got = timeline.at(6, 3)
    assert level(got.context) == 1.0 and got.since_switch == 0  # half-way from 0 to 2; the prompt at 4 is never seen
    assert level(timeline.at(9, 3).context) == 2.0


def test_a_blend_moves_in_equal_parts_and_recaches_at_its_last_chunk():
    timeline = Timeline([(0, filled(0.0)), (3, filled(3.0))], blend_chunks=3)
    got = [timeline.at(start, 3) for start in range(0, 18, 3)]
    assert [level(c.context) for c in got] == pytest.approx([0, 1, 2, 3, 3, 3])
    assert [c.since_switch for c in got] == [None, 0, 1, 2, 3, 4]
    assert [c.recache for c in got] == [False, False, False, True, False, False]
    assert [got[i].key == got[i + 1].key for i in range(5)] == [False, False, False, True, True]


def test_a_switch_during_a_blend_starts_from_what_was_shown():
    timeline = Timeline([(0, filled(0.0)), (3, filled(4.0)), (9, filled(10.0))], blend_chunks=4)
    levels = [level(timeline.at(start, 3).context) for start in range(0, 24, 3)]
    assert levels == pytest.approx([0, 1, 2, 4, 6, 8, 10, 10])
    assert [start for start in range(0, 24, 3) if timeline.at(start, 3).recache] == [18]


def test_blended_contexts_of_different_length_are_padded_with_zeros():
    short, long = torch.ones(1, 2, 4), torch.full((1, 5, 4), 3.0)
    timeline = Timeline([(0, short), (3, long)], blend_chunks=2)
    assert timeline.at(0, 3).context is short and timeline.at(6, 3).context is long
    mixed = timeline.at(3, 3).context
    assert mixed[0, :, 0].tolist() == [2.0, 2.0, 1.5, 1.5, 1.5]


def test_a_blend_keeps_the_dtype_and_is_computed_wider():
    first, second = torch.full((1, 1, 4), 1.0).bfloat16(), torch.full((1, 1, 4), 257.0).bfloat16()
    timeline = Timeline([(0, first), (1, second)], blend_chunks=3)
    mixed = timeline.at(1, 1).context
    assert mixed.dtype == torch.bfloat16
    expected = torch.lerp(first.float(), second.float(), 1 / 3).bfloat16()
    assert torch.equal(mixed, expected)


def test_after_a_single_given_image_chunks_start_at_one():
    timeline = Timeline([(0, filled(0.0)), (4, filled(1.0)), (5, filled(2.0))])
    assert [level(timeline.at(start, 3).context) for start in (0, 1, 4, 7)] == [0.0, 0.0, 1.0, 2.0]
    assert timeline.at(4, 3).since_switch == 0 and timeline.at(7, 3).since_switch == 0


def test_the_same_tensor_again_is_the_same_key():
    a, b = filled(0.0), filled(1.0)
    timeline = Timeline([(0, a), (3, b), (6, a)])
    keys = [timeline.at(start, 3).key for start in (0, 3, 6)]
    assert keys[0] == keys[2] != keys[1]
    moved = timeline.to(dtype=torch.float64)
    assert moved.at(0, 3).key == moved.at(6, 3).key and moved.at(0, 3).context.dtype == torch.float64


def test_switching_to_the_same_tensor_with_a_blend_changes_nothing():
    a = filled(1.0)
    timeline = Timeline([(0, a), (3, a)], blend_chunks=3)
    assert {timeline.at(start, 3).key for start in range(0, 15, 3)} == {timeline.at(0, 3).key}
    assert timeline.at(3, 3).context is a


switch_frames = st.lists(st.integers(1, 30), max_size=5, unique=True).map(sorted)


@given(switch_frames, st.integers(0, 4), st.integers(1, 4), st.integers(0, 1))
def test_lookup_equals_a_walk_over_all_chunks(switches, blend_chunks, chunk_frames, offset):
    values = [float(2**index) for index in range(len(switches) + 1)]
    timeline = Timeline(list(zip([0, *switches], map(filled, values), strict=True)), blend_chunks)
    starts = range(offset, 60, chunk_frames)
    shown, source, target, since = values[0], values[0], 0, None
    seen = []
    for start in starts:
        current = max(index for index, frame in enumerate([0, *switches]) if frame <= start)
        if current != target:
            source, target, since = shown, current, 0
        elif since is not None:
            since += 1
        if since is not None:
            weight = min(1.0, (since + 1) / max(blend_chunks, 1))
            shown = source + weight * (values[target] - source)
        got = timeline.at(start, chunk_frames)
        assert level(got.context) == pytest.approx(shown, rel=1e-5)
        assert got.since_switch == since
        assert got.recache == (since == max(blend_chunks, 1) - 1)
        seen.append((got.key, got.context))
    for (key, context), (next_key, next_context) in pairwise(seen):
        assert (key == next_key) == torch.equal(context, next_context)
        hash(key)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], "at least one entry"),
        ([(1, filled(0.0))], "first entry must start at latent frame 0"),
        ([(0, filled(0.0)), (3, filled(0.0)), (3, filled(1.0))], "entry 2: starts must ascend, but 3 follows 3"),
        ([(0, filled(0.0)), (3, filled(0.0)), (2, filled(1.0))], "entry 2: starts must ascend"),
        ([(0.0, filled(0.0))], "whole number"),
        ([(0, "a red 3")], r"must be a tensor \[B,L,D\], got str"),
        ([(0, torch.zeros(2, 4))], r"\[B,L,D\]"),
        ([(0, torch.zeros(1, 2, 4, dtype=torch.long))], "floating point"),
        ([(0, torch.zeros(1, 0, 4))], "not empty"),
        ([(0, filled(0.0)), (3, filled(0.0, batch=2))], "entry 1: its batch size is 2, that of entry 0 is 1"),
        ([(0, filled(0.0)), (3, torch.zeros(1, 2, 5))], "width is 5"),
        ([(0, filled(0.0)), (3, filled(0.0).double())], "dtype is torch.float64"),
        ([(0, filled(0.0)), (3, filled(0.0).to("meta"))], "device is meta"),
    ],
)
def test_entries_that_do_not_fit_are_refused(entries, says):
    with pytest.raises(ValueError, match=says):
        Timeline(entries)


@pytest.mark.parametrize("blend_chunks", [-1, 1.5, True, None])
def test_blends_are_whole_chunks(blend_chunks):
    with pytest.raises(ValueError, match="blend_chunks"):
        Timeline([(0, filled(0.0))], blend_chunks)


def test_require_names_what_does_not_fit():
    timeline = as_timeline(filled(0.0, batch=2))
    timeline.require(batch_size=2, device=torch.device("cpu"), text_dim=4)
    with pytest.raises(ValueError, match="batch size 2, the latents have 3"):
        timeline.require(batch_size=3)
    with pytest.raises(ValueError, match="4 wide, the model takes 8"):
        timeline.require(text_dim=8)
    with pytest.raises(ValueError, match="on cpu, the model on meta"):
        timeline.require(device=torch.device("meta"))
