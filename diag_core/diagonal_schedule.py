"""Which steps each chunk takes: the diagonal schedule, and the only home of step numbers.

A diagonal schedule maps a chunk index to a step list: descending schedule timesteps (0 < t <= 1000, before the shift),
without the final 0. Early chunks get long lists and later ones short lists, because later chunks start from what the
earlier ones have settled. Past its end a schedule repeats its last list, or cycles. The chunks at and after a prompt
switch may have lists of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from .noise_schedule import SCHEDULE_TIMESTEPS, sigma_from_schedule_timestep
from .schedule_text import (
    MAX_CHUNKS,
    MAX_STEPS,
    ScheduleError,
    Sections,
    Steps,
    check_shift,
    find_fault,
    format_sections,
    number_text,
    parse_sections,
)

__all__ = ["DEFAULT_SHIFT", "PRESETS", "DiagonalSchedule", "Preset", "ScheduleError", "default_steps"]

DEFAULT_SHIFT = 5.0

_DISTILLED_STEPS: dict[int, Steps] = {
    1: (1000.0,),
    2: (1000.0, 100.0),
    3: (1000.0, 750.0, 100.0),
    4: (1000.0, 750.0, 500.0, 100.0),
    5: (1000.0, 750.0, 500.0, 250.0, 100.0),
}


def default_steps(count: int) -> Steps:
    """The step list that a bare count 1..64 stands for.

    Up to 5 the lists of the distilled models; beyond, for undistilled ones, `count` uniform schedule timesteps.
    """
    if not 1 <= count <= MAX_STEPS:
        raise ScheduleError(f"a step count is 1 to {MAX_STEPS}, got {count}")
    return _DISTILLED_STEPS.get(count) or tuple(SCHEDULE_TIMESTEPS * (1 - i / count) for i in range(count))


def _count_of(steps: Steps) -> int | None:
    return len(steps) if steps == default_steps(len(steps)) else None


@dataclass(frozen=True)
class DiagonalSchedule:
    """Chunk index -> step list. Immutable and hashable; equal schedules give equal steps for every chunk.

    Made by `parse`, `from_steps` or `from_json`; all raise ScheduleError (a ValueError) for what cannot be used.
    """

    chunks: tuple[Steps, ...]
    """Schedule timesteps of chunk 0, 1, ..; the last list repeats for ever if there is no cycle."""
    cycle: tuple[Steps, ...] = ()
    """Lists that follow `chunks` over and over."""
    after_switch: tuple[Steps, ...] = ()
    """Lists of the first, second, .. chunk at and after a prompt switch."""
    shift: float = DEFAULT_SHIFT
    """Turns schedule timesteps into sigmas: sigma = shift s / (1 + (shift - 1) s), s = t / 1000."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", check_shift(self.shift))
        for name in ("chunks", "cycle", "after_switch"):
            object.__setattr__(self, name, _check_lists(name, getattr(self, name), self.shift))
        if not self.chunks and not self.cycle:
            raise ScheduleError("the schedule has no chunk; give at least one step list")

    @classmethod
    def parse(cls, text: str, shift: float = DEFAULT_SHIFT) -> DiagonalSchedule:
        """Read the text form (see schedule_text.py). Faults name the 1-based character and the offending piece."""
        shift = check_shift(shift)
        return cls(*parse_sections(text, shift, default_steps), shift=shift)

    @classmethod
    def from_steps(
        cls,
        chunks: Iterable[Iterable[float]],
        *,
        cycle: Iterable[Iterable[float]] = (),
        after_switch: Iterable[Iterable[float]] = (),
        shift: float = DEFAULT_SHIFT,
    ) -> DiagonalSchedule:
        """From lists of schedule timesteps (0 < t <= 1000, descending), one list a chunk."""
        return cls(chunks, cycle, after_switch, shift)  # type: ignore[arg-type]  # __post_init__ makes the tuples

    def schedule_timesteps(self, chunk: int, since_switch: int | None = None) -> Steps:
        """Schedule timesteps of sampled chunk `chunk` (0-based), descending, without the final 0.

        since_switch: chunks since a prompt switch was taken (0 at the chunk that takes it), None before any.
        """
        if chunk < 0 or (since_switch is not None and since_switch < 0):
            raise ValueError(f"chunks count from 0, got chunk={chunk}, since_switch={since_switch}")
        if since_switch is not None and since_switch < len(self.after_switch):
            return self.after_switch[since_switch]
        if chunk < len(self.chunks):
            return self.chunks[chunk]
        if self.cycle:
            return self.cycle[(chunk - len(self.chunks)) % len(self.cycle)]
        return self.chunks[-1]

    def sigmas(self, chunk: int, since_switch: int | None = None) -> tuple[float, ...]:
        """The same steps as sigmas in 0..1 (after the shift), descending, without the final 0."""
        return tuple(sigma_from_schedule_timestep(t, self.shift) for t in self.schedule_timesteps(chunk, since_switch))

    def steps(self, chunk: int, since_switch: int | None = None) -> int:
        """How many denoising steps the chunk takes."""
        return len(self.schedule_timesteps(chunk, since_switch))

    def forwards(self, num_chunks: int) -> int:
        """Denoising forwards of the first `num_chunks` chunks without prompt switches; commits are not counted."""
        return sum(self.steps(chunk) for chunk in range(num_chunks))

    def text(self) -> str:
        """Canonical text without the shift: parse(schedule.text(), schedule.shift) == schedule."""
        return format_sections(Sections(self.chunks, self.cycle, self.after_switch), _count_of)

    def to_json(self) -> str:
        """JSON with every step written out, so that a stored schedule does not depend on what a count stands for."""
        lists = {"chunks": self.chunks, "cycle": self.cycle, "after_switch": self.after_switch}
        return json.dumps({"shift": self.shift, **{name: value for name, value in lists.items() if value}})

    @classmethod
    def from_json(cls, text: str) -> DiagonalSchedule:
        """Read `to_json`'s form. Raises ScheduleError for anything else."""
        if not isinstance(text, str):
            raise ScheduleError(f"a stored schedule is JSON text, got {type(text).__name__}")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ScheduleError(f"not a stored schedule, the JSON does not read: {error}") from None
        if not isinstance(data, dict):
            raise ScheduleError("a stored schedule is a JSON object with 'shift' and 'chunks' or 'cycle'")
        unknown = sorted(set(data) - {"shift", "chunks", "cycle", "after_switch"})
        if unknown:
            raise ScheduleError(f"a stored schedule has no entry {unknown[0][:40]!r}; remove it")
        if "shift" not in data:
            raise ScheduleError("the stored schedule lacks its 'shift'; add it (Wan models use 5.0)")
        return cls(data.get("chunks", ()), data.get("cycle", ()), data.get("after_switch", ()), data["shift"])


def _check_lists(name: str, lists: object, shift: float) -> tuple[Steps, ...]:
    """`lists` as tuples of floats; ScheduleError with the place of the first fault."""
    outer = _as_tuple(lists, name, "lists of steps")
    if len(outer) > MAX_CHUNKS:
        raise ScheduleError(f"{name}: {len(outer)} step lists; use {MAX_CHUNKS} at most")
    checked: dict[Steps, None] = {}  # long schedules repeat a few lists
    result = []
    for number, inner in enumerate(outer, start=1):
        steps: Steps = ()
        for step, t in enumerate(_as_tuple(inner, f"{name}, list {number}", "steps"), start=1):
            if isinstance(t, bool) or not isinstance(t, (int, float)):
                raise ScheduleError(f"{name}, list {number}, step {step}: a step is a number, got {type(t).__name__}")
            if not 0 < t <= SCHEDULE_TIMESTEPS:
                raise ScheduleError(f"{name}, list {number}, step {step}: steps lie above 0 and at most at 1000")
            steps += (float(t),)
        fault = None if steps in checked else find_fault(steps, shift)
        if fault is not None:
            at = f", step {fault[0] + 1} ({number_text(steps[fault[0]])})" if steps else ""
            raise ScheduleError(f"{name}, list {number}{at}: {fault[1]}")
        checked[steps] = None
        result.append(steps)
    return tuple(result)


def _as_tuple(value: object, where: str, what: str) -> tuple[object, ...]:
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise ScheduleError(f"{where}: expected {what}, got {type(value).__name__}")
    return tuple(value)


@dataclass(frozen=True)
class Preset:
    """A named schedule: its text and one line about it."""

    text: str
    description: str


PRESETS: dict[str, Preset] = {
    "paper-4322222": Preset("4322222", "The paper's choice: 17 forwards for 5 seconds"),
    "paper-4222222": Preset("4222222", "The paper's fastest: 16 forwards, frame quality a little lower"),
    "paper-4333333": Preset("4333333", "One step more for every later chunk: 22 forwards"),
    "paper-5333333": Preset("5333333", "The paper's best frame quality: 23 forwards"),
    "paper-5432222": Preset("5432222", "A longer beginning that falls slowly: 20 forwards"),
    "paper-5433333": Preset("5433333", "The paper's most expensive: 24 forwards"),
    "uniform-4": Preset("4", "Four steps for every chunk: 28 forwards for 5 seconds"),
    "self-forcing": Preset("1000,750,500,250", "The step list of Self-Forcing and LongLive, for every chunk"),
}
