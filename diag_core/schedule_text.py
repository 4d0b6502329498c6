"""The text form of a diagonal schedule: reader, writer, and the faults they name.

    4322222                          a run of digits 1-9 standing alone: one step count a chunk
    4 3 2*5 (3 2*6)*                 counts; *n repeats; a group repeats n times, or with a bare * for ever (only last)
    1000,750,100 | 900,*3 | 2        step lists (schedule timesteps) beside counts; blanks and | separate items
    4322222 @ 4 3                    after @: the first, second, .. chunk from a prompt switch on

A number above 64 cannot be a count and is a list of one step; a trailing comma says so for any number. This module
knows the notation and the limits, but no step numbers: which steps a count stands for is handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

from .noise_schedule import SCHEDULE_TIMESTEPS, sigma_from_schedule_timestep

MAX_STEPS = 64  # steps of one chunk; also the largest count
MAX_CHUNKS = 10_000  # entries of one section after its repeats are written out
DIGIT_RUN_LENGTH = 16  # counts of a short schedule are written as a run of digits, though repeats may be shorter

Steps = tuple[float, ...]

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_ITEM = re.compile(rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*(?:\s*,)?")
_REPEAT = re.compile(r"\*([0-9]*)")
_BLANK = re.compile(r"\s*")
_DIGIT_RUN = re.compile(r"[1-9]+")


class ScheduleError(ValueError):
    """A schedule that cannot be used. `position` (1-based character) and `piece` are None where no text is at fault."""

    def __init__(self, reason: str, position: int | None = None, piece: str | None = None) -> None:
        where = "" if position is None else f"character {position}: "
        if position is not None and piece:
            where = f"character {position}, '{piece}': "
        super().__init__(where + reason)
        self.reason = reason
        self.position = position
        self.piece = piece


class Sections(NamedTuple):
    """What a text says: the chunks in order, the lists that then cycle for ever, the lists after a prompt switch."""

    chunks: tuple[Steps, ...]
    cycle: tuple[Steps, ...]
    after_switch: tuple[Steps, ...]


def find_fault(steps: Sequence[float], shift: float) -> tuple[int, str] | None:
    """The first fault of a step list as (0-based index of the step, what is wrong and what to do), or None."""
    if not steps:
        return 0, "the step list is empty; give at least one step, such as 1000"
    if len(steps) > MAX_STEPS:
        return MAX_STEPS, f"{len(steps)} steps in one list; use {MAX_STEPS} at most"
    for index, t in enumerate(steps):
        if not 0 < t <= SCHEDULE_TIMESTEPS:
            return index, "steps lie above 0 and at most at 1000 (the final 0 is implied); change or drop it"
        if index and t >= steps[index - 1]:
            before = number_text(steps[index - 1])
            hint = "; for step counts, put blanks between them instead of commas" if max(steps) <= MAX_STEPS else ""
            return index, f"steps must fall, but {number_text(t)} follows {before}; reorder or drop one{hint}"
    sigmas = [sigma_from_schedule_timestep(t, shift) for t in steps]
    for index, sigma in enumerate(sigmas):
        if sigma <= 0 or (index and sigma >= sigmas[index - 1]):
            return index, f"at shift {shift:g} this step cannot be told from its neighbour; move them apart"
    return None


def check_shift(shift: object) -> float:
    """`shift` as a float; ScheduleError unless it is a finite number above 0."""
    if isinstance(shift, bool) or not isinstance(shift, (int, float)):
        raise ScheduleError(f"shift must be a number, got {type(shift).__name__}; Wan models use 5.0")
    try:
        value = float(shift)
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:
        raise ScheduleError(f"shift must be finite and above 0, got {value}; Wan models use 5.0")
    return value


def parse_sections(text: object, shift: float, steps_of_count: Callable[[int], Steps]) -> Sections:
    """Read a whole text. Raises ScheduleError, with the position of the fault, for anything that is not a schedule."""
    if not isinstance(text, str):
        raise ScheduleError(f"a schedule is text such as '4322222', got {type(text).__name__}")
    if not text.strip():
        raise ScheduleError("the schedule is empty; write one such as '4322222'", 1)
    at = text.find("@")
    second = text.find("@", at + 1) if at >= 0 else -1
    if second >= 0:
        raise ScheduleError("only one '@' may stand in a schedule; remove this one", second + 1, "@")
    main = _Reader(text, 0, at if at >= 0 else len(text), shift, steps_of_count)
    chunks, cycle = main.section()
    if at < 0:
        return Sections(chunks, cycle, ())
    after_switch, _ = _Reader(text, at + 1, len(text), shift, steps_of_count, cycles=False).section()
    return Sections(chunks, cycle, after_switch)


class _Reader:
    """Reads text[start:end], one section; `cycles` says whether a group may repeat for ever."""

    def __init__(
        self, text: str, start: int, end: int, shift: float, steps_of_count: Callable[[int], Steps], cycles: bool = True
    ) -> None:
        self.text = text
        self.pos = start
        self.end = end
        self.shift = shift
        self.steps_of_count = steps_of_count
        self.cycles = cycles

    def section(self) -> tuple[tuple[Steps, ...], tuple[Steps, ...]]:
        self._skip_blanks()
        run = self.text[self.pos : self.end].rstrip()
        if _DIGIT_RUN.fullmatch(run):
            if len(run) > MAX_CHUNKS:
                raise self._error(f"{len(run)} chunks are too many; {MAX_CHUNKS} at most", self.pos, run)
            return tuple(self.steps_of_count(int(digit)) for digit in run), ()
        return self._items(in_group=False)

    def _items(self, in_group: bool) -> tuple[tuple[Steps, ...], tuple[Steps, ...]]:
        """Items up to the end of the section, or up to and without the ')' of a group."""
        chunks: list[Steps] = []
        cycle: tuple[Steps, ...] = ()
        item_due = True  # at the start and after each '|'
        while True:
            self._skip_blanks()
            start, char = self.pos, self._char()
            if char in ("", "|", ")"):
                if item_due:
                    raise self._error("an item is missing before this; write a count or a step list", start, char)
                if char == ")" and not in_group:
                    raise self._error("this ')' closes nothing; remove it or add its '('", start, char)
                if char != "|":
                    return tuple(chunks), cycle
                item_due = True
                self.pos += 1
                continue
            if cycle:
                raise self._error("this follows a group that repeats for ever; move it before, or write ')*n'", start)
            if char == "(":
                if in_group:
                    raise self._error("a group inside a group is not supported; write the inner one out", start, char)
                item, times = self._group()
            elif char == "*":
                raise self._error("'*' must directly follow a count, a step list or a group", start, char)
            else:
                item, times = self._item()
            item_due = False
            if times is None:
                cycle = item
                continue
            if len(chunks) + len(item) * times > MAX_CHUNKS:
                raise self._error(f"more than {MAX_CHUNKS} chunks; shorten the repeats or use a cycle '(..)*'", start)
            chunks.extend(item * times)

    def _group(self) -> tuple[tuple[Steps, ...], int | None]:
        start = self.pos
        self.pos += 1
        item, _ = self._items(in_group=True)
        if self._char() != ")":
            raise self._error("this '(' is not closed; add ')' and a repeat such as *2", start, "(")
        self.pos += 1
        if self._char() != "*":
            raise self._error("a group needs *n after its ')', or a bare * to repeat for ever", self.pos - 1, ")")
        return item, self._repeat(bare=True)

    def _item(self) -> tuple[tuple[Steps, ...], int | None]:
        start = self.pos
        match = _ITEM.match(self.text, start, self.end)
        if match is None:
            raise self._error(_unexpected(self._char()), start)
        self.pos = match.end()
        if not (self._char() in ("", "|", "(", ")", "*") or self._char().isspace()):
            raise self._error(_unexpected(self._char()), self.pos)
        steps = self._steps(match.group(), start)
        return (steps,), self._repeat(bare=False) if self._char() == "*" else 1

    def _steps(self, item: str, start: int) -> Steps:
        numbers = list(re.finditer(_NUMBER, item))
        steps = tuple(float(number.group()) for number in numbers)
        if "," not in item and steps[0] <= MAX_STEPS:
            if not item.isdigit():
                raise self._error(f"a count is a whole number; write '{item},' for a list of one step", start, item)
            if steps[0] == 0:
                raise self._error(f"a chunk needs at least 1 step; write a count of 1 to {MAX_STEPS}", start, item)
            return self.steps_of_count(int(steps[0]))
        fault = find_fault(steps, self.shift)
        if fault is not None:
            index, reason = fault
            if "," not in item and len(item) > 4 and item.isdigit():
                reason = f"{reason}. A run of counts must stand alone: put blanks between the counts here"
            raise self._error(reason, start + numbers[index].start(), numbers[index].group())
        return steps

    def _repeat(self, bare: bool) -> int | None:
        """Read '*n' at the current position; None for a bare '*'."""
        start = self.pos
        match = _REPEAT.match(self.text, start, self.end)
        assert match is not None
        self.pos = match.end()
        digits = match.group(1)
        if not (self._char() in ("", "|", "(", ")") or self._char().isspace()):
            raise self._error("a repeat is '*' and a whole number, then a blank or '|'", self.pos)
        if not digits:
            if not bare:
                raise self._error(
                    "a number must directly follow '*'; only a group '(..)*' repeats for ever", start, "*"
                )
            if not self.cycles:
                raise self._error("a repeat for ever cannot stand after '@'; give the group a number", start, "*")
            return None
        times = float(digits)
        if not 1 <= times <= MAX_CHUNKS:
            raise self._error(f"repeat 1 to {MAX_CHUNKS} times, or drop the item", start, match.group())
        return int(times)

    def _char(self) -> str:
        return self.text[self.pos] if self.pos < self.end else ""

    def _skip_blanks(self) -> None:
        match = _BLANK.match(self.text, self.pos, self.end)
        assert match is not None
        self.pos = match.end()

    def _error(self, reason: str, at: int, piece: str | None = None) -> ScheduleError:
        if piece is None:
            piece = self.text[at : self.end].split(maxsplit=1)[0]
        return ScheduleError(reason, at + 1, piece if len(piece) <= 20 else piece[:20] + "..")


def _unexpected(char: str) -> str:
    if char == ",":
        return "a step is missing before this comma; add it or remove the comma"
    if char == "-":
        return "counts and steps are above 0; remove the '-'"
    return "not part of a schedule; use counts such as '4 3 2*5' or step lists such as '1000,750,100 | 1000,100'"


def format_sections(sections: Sections, count_of_steps: Callable[[Steps], int | None]) -> str:
    """The usual way to write the sections; `parse_sections` gives them back."""
    text = _format_section(sections.chunks, sections.cycle, count_of_steps)
    if sections.after_switch:
        text += " @ " + _format_section(sections.after_switch, (), count_of_steps)
    return text


def _format_section(
    chunks: Sequence[Steps], cycle: Sequence[Steps], count_of_steps: Callable[[Steps], int | None]
) -> str:
    counts = [count_of_steps(steps) for steps in (*chunks, *cycle)]
    # With blanks alone a list that ends in a comma would run into the number after it.
    separator = " | " if None in counts else " "
    items = _format_items(chunks, count_of_steps)
    if cycle:
        return separator.join([*items, f"({separator.join(_format_items(cycle, count_of_steps))})*"])
    text = separator.join(items)
    run = "".join(str(count) for count in counts)
    if all(count is not None and count <= 9 for count in counts) and len(run) <= max(len(text), DIGIT_RUN_LENGTH):
        return run
    # A lone two-digit count without a 0 would read as a run of two.
    return f"{text}*1" if _DIGIT_RUN.fullmatch(text) else text


def _format_items(chunks: Sequence[Steps], count_of_steps: Callable[[Steps], int | None]) -> list[str]:
    items = []
    for steps, same in groupby(chunks):
        count, times = count_of_steps(steps), len(list(same))
        item = str(count) if count is not None else ",".join(map(number_text, steps)) + ("," if len(steps) == 1 else "")
        items.append(item if times == 1 else f"{item}*{times}")
    return items


def number_text(t: float) -> str:
    """A step as plain decimals that read back as the same float."""
    text = format(Decimal(repr(float(t))), "f")
    return text.removesuffix(".0")
