"""The timeline's text form: what it reads, where it says a fault is, and that writing undoes reading."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diag_core.timeline_text import TimelineEntry, TimelineError, format_timeline, one_line, parse_timeline


def read(text: str, **options) -> list[tuple[int, str]]:
    return [(entry.start_latent_frame, entry.prompt) for entry in parse_timeline(text, **options)]


def test_the_readme_example():
    assert parse_timeline("0s: a red 3 moves right; 2.5s: a blue 7 moves left") == [
        TimelineEntry(0, "a red 3 moves right", "0s"),
        TimelineEntry(10, "a blue 7 moves left", "2.5s"),
    ]


@pytest.mark.parametrize(
    ("time", "options", "frame"),
    [
        ("5s", {}, 20),
        ("5s", {"fps": 24}, 30),
        ("5 s", {}, 20),
        (".5S", {}, 2),
        ("40f", {}, 10),
        ("41f", {}, 11),
        ("40.0f", {}, 10),
        ("7lf", {}, 7),
        ("4c", {}, 12),
        ("4c", {"chunk_frames": 2}, 8),
    ],
)
def test_units(time, options, frame):
    assert read(f"0s: a; {time}: b", **options) == [(0, "a"), (frame, "b")]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a red 3 moves right", [(0, "a red 3 moves right")]),
        ("a red 3\n  moves right;\n", [(0, "a red 3 moves right")]),
        ("a cat; a dog; 16:9", [(0, "a cat; a dog; 16:9")]),
        ("5 cats: a story", [(0, "5 cats: a story")]),
        ("0s: a; b; 3c: c ; d", [(0, "a; b"), (9, "c ; d")]),
        ("0s: a\n\n  3c:b\r\n4c : c", [(0, "a"), (9, "b"), (12, "c")]),
        ("0s: a;\n3c: b;", [(0, "a"), (9, "b")]),
        ("0s: a;; 3c: b", [(0, "a"), (9, "b")]),
        ("0s: at 10:30; 10:30 sharp", [(0, "at 10:30; 10:30 sharp")]),
        ("0s: 3d: render", [(0, "3d: render")]),
        (r"a cat\;", [(0, "a cat;")]),
        (r"0s: a\; 2s: b\; ; 2s: c\\; d;", [(0, "a; 2s: b;"), (8, r"c\; d")]),
    ],
)
def test_separators_and_colons_inside_prompts(text, entries):
    assert read(text) == entries


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("", 1, 1, "empty"),
        (" ;\n; ", 1, 1, "empty"),
        ("0s:", 1, 4, "empty"),
        ("0s: a\n 2s:  ", 2, 5, "prompt at 2s is empty"),
        ("0s: ; 2s: b", 1, 4, "prompt at 0s is empty"),
        ("1s: a", 1, 1, "add '0s: ..'"),
        ("hello; 2s: b", 1, 1, "put '0s:'"),
        ("0s: a\nb", 2, 1, "has no time"),
        ("0s: a; 0s: b", 1, 8, "stands twice"),
        ("0s: a\n2.4s: b\n  2.5s: c", 3, 3, "same latent frame (10)"),
        ("0s: a\n3s: b; 2s: c", 2, 8, "must ascend"),
        ("0s: a; -2s: b", 1, 8, "negative"),
        ("0s: a; 2x: b", 1, 9, "'x' is no unit"),
        ("0s: a; 2 sec: b", 1, 9, "'sec' is no unit"),
        ("0s: a; 2: b", 1, 9, "no unit"),
        ("0s: a; 2:", 1, 9, "no unit"),
        ("0s: a; 1.5f: b", 1, 8, "whole number of pixel frames"),
        ("0s: a; 99999999999s: b", 1, 8, "too large"),
    ],
)
def test_faults_are_named_and_placed(text, line, column, says):
    with pytest.raises(TimelineError) as caught:
        parse_timeline(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"line {caught.value.line}, column {caught.value.column}: ")


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": float("nan")}, {"chunk_frames": 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="must be"):
        parse_timeline("a", **options)


@pytest.mark.parametrize("text", [None, 3, b"a"])
def test_only_text_is_read(text):
    with pytest.raises(TimelineError, match="text such as"):
        parse_timeline(text)


@pytest.mark.parametrize(
    "entry",
    [
        TimelineEntry(0, "two\nlines", "0s"),
        TimelineEntry(0, " blank", "0s"),
        TimelineEntry(0, "", "0s"),
        TimelineEntry(0, "a", "soon"),
        TimelineEntry(0, "a", "0s: b; 1s"),
    ],
)
def test_what_the_text_cannot_hold_is_not_written(entry):
    with pytest.raises(ValueError, match="entry 0 cannot be written"):
        format_timeline([entry])


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a; b", "0s: a; b"),
        ("ends;", r"0s: ends\;"),
        ("a; 2s: b", r"0s: a\; 2s: b"),
        (r"a\; b", r"0s: a\\; b"),
        ("2s: a", "0s: 2s: a"),
    ],
)
def test_a_semicolon_is_marked_only_where_it_would_be_lost(prompt, line):
    assert format_timeline([TimelineEntry(0, prompt, "0s")]) == line


any_line = st.one_of(st.text(), st.text(alphabet="\\;: 2sa\n\u2028")).map(lambda text: " ".join(text.split()))


@given(any_line.filter(bool), any_line.filter(bool))
def test_any_prompt_of_one_line_can_be_written_and_read(first, second):
    entries = [TimelineEntry(0, first, "0s"), TimelineEntry(6, second, "6lf")]
    assert parse_timeline(format_timeline(entries)) == entries


prompt_text = st.text(alphabet="ab 3;:.f", min_size=1, max_size=12)
times = st.lists(st.integers(1, 200), unique=True, max_size=4).map(sorted)


@given(st.text(min_size=1).filter(lambda text: not text.isspace()))
@example("a cat;\n 3s: no time;")
def test_any_prompt_can_be_written_on_one_line(prompt):
    (read,) = parse_timeline(format_timeline([one_line(TimelineEntry(0, prompt, "0s"))]))
    assert read.prompt.split() == prompt.split()


@given(times, st.sampled_from(["s", "f", "lf", "c"]), st.sampled_from(["\n", "; ", " ;\n"]), st.data())
def test_valid_timelines_round_trip(starts, unit, separator, data):
    words = st.sampled_from(["a red 3", "b; c", "16:9", "x: y", "\u00e9 \U0001f600"])
    factor = 4 if unit == "f" else 1
    parts = [(0, data.draw(words)), *((start * factor, data.draw(words)) for start in starts)]
    entries = parse_timeline(separator.join(f"{number}{unit}: {prompt}" for number, prompt in parts))
    frames = {"s": lambda n: 4 * n, "f": lambda n: n // 4, "lf": lambda n: n, "c": lambda n: 3 * n}[unit]
    assert entries == [TimelineEntry(frames(number), prompt, f"{number}{unit}") for number, prompt in parts]
    assert parse_timeline(format_timeline(entries)) == entries


def timeline_or_error(text: str) -> None:
    try:
        entries = parse_timeline(text)
    except TimelineError as error:
        assert error.line >= 1 and error.column >= 1
        return
    starts = [entry.start_latent_frame for entry in entries]
    assert starts[0] == 0 and all(a < b for a, b in pairwise(starts))
    assert all(entry.prompt and entry.prompt == entry.prompt.strip() for entry in entries)
    assert parse_timeline(format_timeline(entries)) == entries


@given(st.text())
def test_any_text_gives_a_timeline_or_its_error(text):
    timeline_or_error(text)


@given(st.text(alphabet="01.-;: slfcx\\\n\u00a0\u2028", max_size=24))
@example("0s: a; " + "9" * 5000 + "s: b")
@example("0s: a; " + "9" * 5000 + "c: b")
@example("a;2\ns: b")
@example("0s:a\u00a0;\u00a0;1s:b")
def test_any_text_of_the_forms_characters_gives_a_timeline_or_its_error(text):
    timeline_or_error(text)


@given(
    st.lists(st.tuples(st.sampled_from(["0s", "1s", "8f", "3lf", "4c", "2", "5x"]), prompt_text), max_size=4), st.data()
)
def test_a_damaged_timeline_gives_a_timeline_or_its_error(parts, data):
    text = data.draw(st.sampled_from(["\n", ";"])).join(f"{time}: {prompt}" for time, prompt in parts)
    cut = data.draw(st.integers(0, len(text)))
    timeline_or_error(text[:cut] + data.draw(st.text(alphabet="0s:; \n", max_size=3)) + text[cut:])
