"""Schedules: METHOD.md's numbers, the notation, round trips, and faults that are named and placed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diag_core.diagonal_schedule import PRESETS, DiagonalSchedule, ScheduleError, default_steps
from diag_core.schedule_text import MAX_CHUNKS

parse = DiagonalSchedule.parse


def counts(schedule: DiagonalSchedule, num_chunks: int) -> list[int]:
    return [schedule.steps(chunk) for chunk in range(num_chunks)]


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_the_papers_schedule():
    schedule = parse("4322222")
    assert schedule.schedule_timesteps(0) == (1000, 750, 500, 100)
    assert schedule.schedule_timesteps(1) == (1000, 750, 100)
    assert schedule.schedule_timesteps(6) == schedule.schedule_timesteps(700) == (1000, 100)
    assert schedule.forwards(7) == 17
    assert [1000 * s for s in schedule.sigmas(0)] == pytest.approx([1000, 937.5, 833.3333, 357.1429], abs=1e-4)
    assert [1000 * s for s in parse("5").sigmas(0)] == pytest.approx([1000, 937.5, 833.3333, 625, 357.1429], abs=1e-4)


def test_counts_beyond_five_are_uniform():
    assert default_steps(1) == (1000,)
    assert default_steps(8) == (1000, 875, 750, 625, 500, 375, 250, 125)
    assert parse("50").schedule_timesteps(3) == pytest.approx([20 * i for i in range(50, 0, -1)])


def test_presets_are_the_papers_table_and_the_uniform_ones():
    digits = {"5433333", "5432222", "5333333", "4333333", "4322222", "4222222"}
    assert {preset.text for preset in PRESETS.values()} == digits | {"4", "1000,750,500,250"}
    for preset in (preset for preset in PRESETS.values() if preset.text.isdigit()):
        schedule = parse(preset.text)
        assert schedule.text() == preset.text
        assert counts(schedule, 7) == [int(digit) for digit in (preset.text * 7)[:7]]
        for number in [
            word for word in preset.description.replace(":", " ").split() if word.isdigit() and len(word) == 2
        ]:
            assert schedule.forwards(7) == int(number)


def test_any_shift():
    assert parse("4", shift=1).sigmas(0) == pytest.approx((1.0, 0.75, 0.5, 0.1))
    assert parse("4", shift=8).sigmas(0)[1] == pytest.approx(8 * 0.75 / (1 + 7 * 0.75))
    assert parse("4", shift=8) != parse("4") and parse("4", shift=5) == parse("4")


# ---- notation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4322222", [4, 3, 2, 2, 2, 2, 2, 2, 2]),
        ("4 3 2*5 (3 2*6)*", [4, 3, 2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 3, 2]),
        ("(3 2)*2 1", [3, 2, 3, 2, 1, 1]),
        ("(3 2)*", [3, 2, 3, 2, 3]),
        ("4 5 (3 2 1)*", [4, 5, 3, 2, 1, 3, 2, 1]),
        ("4|3|2", [4, 3, 2, 2]),
        (" 4\t3\n2 ", [4, 3, 2, 2]),
        ("50", [50, 50]),
        ("12 12", [12, 12]),
        ("12", [1, 2, 2]),
        ("12*1", [12, 12]),
        ("64 6", [64, 6]),
    ],
)
def test_counts_repeats_groups_and_cycles(text, expected):
    assert counts(parse(text), len(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000,750,500,100 | 1000,750,100 | 1000,100", [(1000, 750, 500, 100), (1000, 750, 100), (1000, 100)]),
        ("1000, 750 ,500 | 4", [(1000, 750, 500), (1000, 750, 500, 100)]),
        ("900", [(900,)]),
        ("900,", [(900,)]),
        ("12.5,", [(12.5,)]),
        ("937.5", [(937.5,)]),
        ("65 1", [(65,), (1000,)]),
        ("1000,100*2 900,*2 1", [(1000, 100)] * 2 + [(900,)] * 2 + [(1000,)]),
        ("(900, | 1)*", [(900,), (1000,), (900,), (1000,)]),
        (".5,", [(0.5,)]),
    ],
)
def test_explicit_lists(text, expected):
    schedule = parse(text)
    assert [schedule.schedule_timesteps(chunk) for chunk in range(len(expected))] == expected


def test_steps_after_a_switch():
    schedule = parse("4322222 @ 4 900,500*2")
    assert [schedule.steps(9, since_switch=k) for k in range(5)] == [4, 2, 2, 2, 2]
    assert schedule.schedule_timesteps(9, since_switch=2) == (900, 500)
    assert schedule.schedule_timesteps(9, since_switch=3) == (1000, 100)
    assert schedule.sigmas(0, since_switch=None) == schedule.sigmas(0)
    assert len(schedule.sigmas(9, since_switch=0)) == 4
    assert parse("2 @ 43").after_switch == parse("2 @ 4 3").after_switch


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("4 3 2 2 2 2 2", "4322222"),
        ("1000,750,500,100 | 1000,750,100 | 1000,100", "432"),
        ("4 3 2*40", "4 3 2*40"),
        ("4 3 2*5 (3 2 2 2 2 2 2)*", "4 3 2*5 (3 2*6)*"),
        ("12*1", "12*1"),
        ("20", "20"),
        ("900", "900,"),
        ("900 4", "900, | 4"),
        ("2 @ 4 3", "2 @ 43"),
    ],
)
def test_canonical_text(text, canonical):
    assert parse(text).text() == canonical
    assert parse(canonical) == parse(text)


def test_schedules_are_values():
    assert len({parse("432"), parse("4 3 2"), parse("4 3 2", shift=3)}) == 2
    with pytest.raises(AttributeError):
        parse("4").shift = 3.0
    assert DiagonalSchedule.from_steps([[1000, 100]]) == parse("2")


def test_negative_indices_are_refused():
    for arguments in ((-1,), (0, -1)):
        with pytest.raises(ValueError):
            parse("4").sigmas(*arguments)


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "piece", "says"),
    [
        ("", 1, None, "empty"),
        (" \n", 1, None, "empty"),
        ("4 || 3", 4, "|", "missing"),
        ("| 4", 1, "|", "missing"),
        ("4 |", 4, "", "missing"),
        ("()*", 2, ")", "missing"),
        ("4 @", 4, "", "missing"),
        ("@ 4", 1, "", "missing"),
        ("1000,,500", 6, ",500", "before this comma"),
        (",500", 1, ",500", "before this comma"),
        ("1000,500 | 500,600", 16, "600", "must fall"),
        ("1000,500,500", 10, "500", "must fall"),
        ("4,3,2,2", 7, "2", "blanks between"),
        ("1000,0", 6, "0", "above 0"),
        ("1000.5,10", 1, "1000.5", "at most at 1000"),
        ("4 0", 3, "0", "at least 1 step"),
        ("4 2.5", 3, "2.5", "whole number"),
        (",".join(str(1000 - i) for i in range(65)), 258, "936", "64 at most"),
        ("4 (3 2", 3, "(", "not closed"),
        ("4 3)", 4, ")", "closes nothing"),
        ("(3 2)", 5, ")", "needs *n"),
        ("((3)*2)*", 2, "(", "inside a group"),
        ("* 3", 1, "*", "directly follow"),
        ("4 *3", 3, "*", "directly follow"),
        ("4 2*", 4, "*", "directly follow"),
        ("4 2*0", 4, "*0", "repeat 1 to"),
        ("4 2*10001", 4, "*10001", "repeat 1 to"),
        ("4 (3 2)*6000", 3, "(3", "more than 10000 chunks"),
        ("(3)* 4", 6, "4", "for ever"),
        ("(3)* (4)*", 6, "(4)*", "for ever"),
        ("4 @ (3)*", 8, "*", "after '@'"),
        ("4 @ 3 @ 2", 7, "@", "only one '@'"),
        ("4 three", 3, "three", "not part"),
        ("4 -3", 3, "-3", "above 0"),
        ("4322222 (3 2)*", 1, "4322222", "must stand alone"),
        ("\u0664", 1, "\u0664", "not part"),
        ("4" * (MAX_CHUNKS + 1), 1, "4" * 20 + "..", "too many"),
    ],
)
def test_faults_are_named_and_placed(text, position, piece, says):
    with pytest.raises(ScheduleError) as caught:
        parse(text)
    assert (caught.value.position, caught.value.piece) == (position, piece)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"character {position}")


@pytest.mark.parametrize("shift", [0, -1, math.inf, math.nan, "5", None, True, 10**400])
def test_shifts_that_cannot_be_used(shift):
    with pytest.raises(ScheduleError, match="shift must be"):
        parse("4", shift=shift)


@pytest.mark.parametrize("text", [None, 4, b"4", ["4"]])
def test_only_text_is_parsed(text):
    with pytest.raises(ScheduleError, match="text such as"):
        parse(text)


def test_steps_that_the_shift_runs_together_are_refused():
    with pytest.raises(ScheduleError, match="cannot be told"):
        parse("1000,750", shift=1e20)


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([], "no chunk"),
        ([[]], "chunks, list 1: the step list is empty"),
        ([[1000], [500, 600]], r"chunks, list 2, step 2 \(600\)"),
        ([[1000, "500"]], "chunks, list 1, step 2: a step is a number"),
        ([[math.nan]], "chunks, list 1, step 1"),
        ([[10**400]], "chunks, list 1, step 1"),
        ([[True]], "a step is a number"),
        (["432"], "expected steps"),
        ("432", "expected lists"),
        (5, "expected lists"),
        ([[1000]] * (MAX_CHUNKS + 1), "at most"),
    ],
)
def test_from_steps_refuses_and_places(lists, says):
    with pytest.raises(ScheduleError, match=says):
        DiagonalSchedule.from_steps(lists)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "4322222",
        "[]",
        "null",
        "{}",
        '{"shift": 5}',
        '{"chunks": [[1000]]}',
        '{"shift": 5, "chunks": [1000]}',
        '{"shift": 5, "chunks": [[NaN]]}',
        '{"shift": Infinity, "chunks": [[1000]]}',
        '{"shift": 5, "chunks": [["1000"]]}',
        '{"shift": 5, "chunks": [{"1000": 1}]}',
        '{"shift": 5, "chunks": {"1000": 1}}',
        '{"shift": 5, "chunks": null}',
        '{"shift": 5, "chunks": [[1000]], "chunk": []}',
        '{"shift": 5, "chunks": [[1000]]',
        "[" * 100_000,
        '{"shift": ' + "9" * 5000 + ', "chunks": [[1000]]}',
    ],
)
def test_from_json_refuses_what_it_did_not_write(stored):
    with pytest.raises(ScheduleError):
        DiagonalSchedule.from_json(stored)


def test_from_json_wants_text():
    with pytest.raises(ScheduleError):
        DiagonalSchedule.from_json({"shift": 5})


# ---- round trips and arbitrary input -------------------------------------------------------------------------------

step_numbers = st.one_of(st.integers(1, 1000).map(float), st.floats(1e-3, 1000.0))
step_lists = st.one_of(
    st.integers(1, 64).map(default_steps),
    st.lists(step_numbers, min_size=1, max_size=6, unique_by=lambda t: round(t, 3)).map(
        lambda ts: sorted(ts, reverse=True)
    ),
)
sections = st.lists(st.tuples(step_lists, st.integers(1, 5)), max_size=4).map(
    lambda parts: [steps for steps, times in parts for _ in range(times)]
)
schedules = st.builds(
    lambda chunks, cycle, after, shift: DiagonalSchedule.from_steps(
        chunks, cycle=cycle, after_switch=after, shift=shift
    ),
    sections.filter(bool),
    sections,
    sections,
    st.floats(0.5, 12.0),
)


@given(schedules)
def test_text_and_json_round_trip(schedule):
    assert parse(schedule.text(), schedule.shift) == schedule
    assert hash(parse(schedule.text(), schedule.shift)) == hash(schedule)
    assert DiagonalSchedule.from_json(schedule.to_json()) == schedule
    for chunk in range(12):
        sigmas = schedule.sigmas(chunk)
        assert all(a > b for a, b in zip(sigmas, (*sigmas[1:], 0.0), strict=True)) and sigmas[0] <= 1.0
    assert schedule.forwards(12) == sum(counts(schedule, 12))


def schedule_or_error(text: str) -> None:
    try:
        schedule = parse(text)
    except ScheduleError as error:
        assert error.position is None or 1 <= error.position <= len(text) + 1
    else:
        assert parse(schedule.text()) == schedule


@given(st.text())
def test_any_text_gives_a_schedule_or_its_error(text):
    schedule_or_error(text)


@given(st.text(alphabet="0123456789.,*()|@ -e\n", max_size=24))
@example("9" * 5000)
@example("2*" + "9" * 5000)
@example("1000,." + "0" * 400 + "1")
def test_any_text_of_the_notations_characters_gives_a_schedule_or_its_error(text):
    schedule_or_error(text)


@given(schedules, st.data())
def test_a_damaged_schedule_gives_a_schedule_or_its_error(schedule, data):
    text = schedule.text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 3)))
    schedule_or_error(text[:start] + data.draw(st.text(alphabet="0159.,*()|@ x", max_size=3)) + text[end:])


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={name: json_values for name in ("shift", "chunks", "cycle", "after_switch")}))
def test_any_json_gives_a_schedule_or_its_error(stored):
    try:
        schedule = DiagonalSchedule.from_json(json.dumps(stored))
    except ScheduleError:
        return
    assert DiagonalSchedule.from_json(schedule.to_json()) == schedule
