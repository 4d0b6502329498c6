"""The text form of a prompt timeline: "0s: a red 3 moves right; 2.5s: a blue 7 moves left".

An entry is a time, a colon and a prompt. Entries stand on lines of their own, or after a ';' that a time follows; any
other ';' belongs to its prompt, except at a prompt's end, where it is dropped. "\\;" is a ';' that belongs to its
prompt wherever it stands. Units: s seconds, f pixel frames, lf latent frames, c chunks. A text without any time is one
prompt from the beginning on. This module knows no tensors; the caller encodes the prompts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from .geometry import DEFAULT_FPS, TIME_STRIDE, latent_frame_at, latent_frame_of

MAX_TIME = 10**9  # in any unit; beyond it a time is a slip of the pen

_UNITS = {"s": "seconds", "f": "pixel frames", "lf": "latent frames", "c": "chunks"}
_UNIT_HELP = "use s (seconds), f (pixel frames), lf (latent frames) or c (chunks)"
# With a blank before it a word is a unit only if it is one of these: "5 cats: .." is a prompt.
_SPACED_UNIT = r"s|f|lf|c|secs?|seconds?|ms|mins?|minutes?|frames?|chunks?"
# "16:9" after a ';' is a ratio, "16: 9" a time without its unit.
_TIME = re.compile(
    rf"(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    rf"(?:(?P<unit>[A-Za-z]+)|[^\S\n]+(?P<spaced>{_SPACED_UNIT})|(?P<missing>))[^\S\n]*:(?(missing)(?=\s|\Z))",
    re.IGNORECASE,
)
_ESCAPED = "\\;"
_SEMICOLON = re.compile(r"(?<!\\);\s*")


class TimelineError(ValueError):
    """A timeline text that cannot be used; `line` and `column` are 1-based."""

    def __init__(self, reason: str, line: int = 1, column: int = 1) -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.reason = reason
        self.line = line
        self.column = column


@dataclass(frozen=True)
class TimelineEntry:
    """A prompt and the latent frame from which it holds."""

    start_latent_frame: int
    prompt: str
    label: str
    """The time as written, such as "2.5s"; "0s" for a text without times."""


@dataclass(frozen=True)
class _Piece:
    """A stretch of text with its place (1-based): one entry as written, not yet understood."""

    text: str
    line: int
    column: int
    time: re.Match[str] | None = field(compare=False)

    def error(self, reason: str, offset: int = 0) -> TimelineError:
        return TimelineError(reason, self.line, self.column + offset)

    @property
    def prompt(self) -> str:
        body = self.text if self.time is None else self.text[self.time.end() :]
        return _strip(body).replace(_ESCAPED, ";")


def parse_timeline(text: str, fps: float = DEFAULT_FPS, chunk_frames: int = 3) -> list[TimelineEntry]:
    """Read a timeline text; seconds count at `fps` pixel frames a second, chunks at `chunk_frames` latent frames.

    Raises TimelineError with line and column for a text that is no timeline, ValueError for fps or chunk_frames.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be finite and above 0, got {fps}")
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames must be at least 1, got {chunk_frames}")
    if not isinstance(text, str):
        raise TimelineError(f"a timeline is text such as '0s: a red 3 moves right', got {type(text).__name__}")
    pieces = _split(text)
    if len(pieces) > 1 and all(piece.time is None for piece in pieces):
        # One prompt over several lines; a time that shows up only once they are joined is caught below.
        pieces = _split(" ".join(piece.text.strip() for piece in pieces))
    if not any(piece.prompt or piece.time for piece in pieces):
        raise TimelineError("the prompt is empty; write what the video shows")
    if len(pieces) == 1 and pieces[0].time is None:
        return [TimelineEntry(0, pieces[0].prompt, "0s")]
    entries: list[TimelineEntry] = []
    for piece in pieces:
        entries.append(_entry(piece, entries, fps, chunk_frames))
    return entries


def latent_frame_of_time(time: str, fps: float = DEFAULT_FPS, chunk_frames: int = 3) -> int:
    """The latent frame of one time by itself, such as "2.5s", "40f", "9lf" or "3c".

    Raises TimelineError for what is no time.
    """
    text = f"{time.strip()}:"
    match = _TIME.fullmatch(text)
    if match is None:
        raise TimelineError(f"'{time}' is no time; write one such as 2.5s: {_UNIT_HELP}")
    return _latent_frame(_Piece(text, 1, 1, match), fps, chunk_frames)


def one_line(entry: TimelineEntry) -> TimelineEntry:
    """The same with single blanks for all spacing: prompt encoders do not see it, and the text form cannot hold it."""
    return replace(entry, prompt=" ".join(entry.prompt.split()))


def format_timeline(entries: list[TimelineEntry]) -> str:
    """One line an entry; `parse_timeline` with the same fps and chunk_frames gives the entries back.

    Raises ValueError for a prompt that the text form cannot hold: one with a line break or with blanks around it.
    """
    lines = []
    for number, entry in enumerate(entries):
        line = f"{entry.label}: {entry.prompt}"
        if not _reads_as(line, entry):
            line = f"{entry.label}: {entry.prompt.replace(';', _ESCAPED)}"
        if not _reads_as(line, entry):
            raise ValueError(
                f"timeline entry {number} cannot be written as '{line}': it needs a label such as '2.5s' and a prompt "
                "of one line, without blanks around it"
            )
        lines.append(line)
    return "\n".join(lines)


def _reads_as(line: str, entry: TimelineEntry) -> bool:
    pieces = _split(line)
    time = pieces[0].time if len(pieces) == 1 else None
    if time is None or not entry.prompt:
        return False
    return _label(time) == entry.label and pieces[0].prompt == entry.prompt


def _split(text: str) -> list[_Piece]:
    """Entries as written: at line breaks, and at each ';' that a time follows. Blank lines are skipped."""
    pieces = []
    for line_number, line in enumerate(text.splitlines(), start=1):
        indent = len(line) - len(line.lstrip())
        cuts = [cut for cut in _SEMICOLON.finditer(line, indent) if _TIME.match(line, cut.end())]
        starts = [indent, *(cut.end() for cut in cuts)]
        ends = [*(cut.start() for cut in cuts), len(line)]
        for start, end in zip(starts, ends, strict=True):
            if start < len(line):
                piece = line[start:end]
                pieces.append(_Piece(piece, line_number, start + 1, _TIME.match(piece)))
    return pieces


def _entry(piece: _Piece, before: list[TimelineEntry], fps: float, chunk_frames: int) -> TimelineEntry:
    if piece.time is None:
        if not before:
            raise piece.error("the first prompt has no time; put '0s:' before it")
        raise piece.error("this line has no time; start it with one such as '2.5s:', or join it to the line above")
    frame, label = _latent_frame(piece, fps, chunk_frames), _label(piece.time)
    if not before and frame != 0:
        raise piece.error(f"the first prompt starts at {label}; add '0s: ..' before it, or change {label} to 0s")
    if before and frame == before[-1].start_latent_frame:
        if label == before[-1].label:
            raise piece.error(f"{label} stands twice; remove one of the two or change its time")
        raise piece.error(
            f"{label} and {before[-1].label} fall on the same latent frame ({frame}); "
            f"move them at least {TIME_STRIDE} pixel frames ({TIME_STRIDE / fps:g} s) apart"
        )
    if before and frame < before[-1].start_latent_frame:
        raise piece.error(f"times must ascend, but {label} comes after {before[-1].label}; put the entries in order")
    if not piece.prompt:
        raise piece.error(f"the prompt at {label} is empty; write what the video shows from there on", piece.time.end())
    return TimelineEntry(frame, piece.prompt, label)


def _latent_frame(piece: _Piece, fps: float, chunk_frames: int) -> int:
    assert piece.time is not None
    number, unit = piece.time["number"], _unit(piece.time)
    at_unit = piece.time.end("number")
    if not unit:
        raise piece.error(f"the time {number} has no unit; {_UNIT_HELP}", at_unit)
    if unit not in _UNITS:
        hint = "" if piece.time["spaced"] else ", or take the colon away if this belongs to the prompt"
        raise piece.error(f"'{unit[:20]}' is no unit of time; {_UNIT_HELP}{hint}", at_unit)
    value = float(number)
    if number.startswith("-"):
        raise piece.error(f"the time {number[:20]}{unit} is negative; times count from 0")
    if value > MAX_TIME or value * (fps if unit == "s" else 1) > MAX_TIME:
        raise piece.error(f"the time {number[:20]}{unit} is too large")
    if unit == "s":
        return latent_frame_at(value, fps)
    if value != int(value):
        raise piece.error(f"{number[:20]}{unit} must be a whole number of {_UNITS[unit]}; only s may have decimals")
    if unit == "f":
        return latent_frame_of(int(value))
    return int(value) * (chunk_frames if unit == "c" else 1)


def _unit(time: re.Match[str]) -> str:
    return (time["unit"] or time["spaced"] or "").lower()


def _label(time: re.Match[str]) -> str:
    return f"{time['number']}{_unit(time)}"


def _strip(prompt: str) -> str:
    """Without blanks around it and without the ';' that only ends an entry."""
    end = len(prompt)
    while end and (prompt[end - 1] == ";" or prompt[end - 1].isspace()) and not prompt.endswith(_ESCAPED, 0, end):
        end -= 1
    return prompt[:end].lstrip()
