"""A diagonal schedule from the parts that the schedule node and its editor show, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..diag_core import PRESETS, DiagonalSchedule, ScheduleError
from ..diag_core.noise_schedule import SCHEDULE_TIMESTEPS

CUSTOM = "custom"
PRESET_NAMES = (CUSTOM, *PRESETS)


def schedule_of(preset: str, steps: str, cycle: str, after_switch: str, shift: float) -> DiagonalSchedule:
    """The schedule of a preset, or of texts: the chunks, lists that then repeat for ever, lists after a prompt switch.

    `steps` may hold the whole notation; what it says of cycle or switches must not be said in a field of its own too.

    Raises:
        ScheduleError: (a ValueError) names the field, the character and what to do.
    """
    if preset not in PRESET_NAMES:
        raise ScheduleError(f"preset: there is no '{preset}'; choose one of {', '.join(PRESET_NAMES)}")
    main = _parse("steps", PRESETS[preset].text if preset != CUSTOM else steps, shift)
    if cycle.strip() and main.cycle:
        raise ScheduleError("cycle: the steps end in a group that repeats for ever already; empty one of the two")
    if after_switch.strip() and main.after_switch:
        raise ScheduleError("after_switch: the steps have a part after '@' already; empty one of the two")
    return DiagonalSchedule.from_steps(
        main.chunks,
        cycle=_lists("cycle", cycle, shift) or main.cycle,
        after_switch=_lists("after_switch", after_switch, shift) or main.after_switch,
        shift=shift,
    )


def _lists(field: str, text: str, shift: float) -> Sequence[Sequence[float]]:
    if not text.strip():
        return ()
    parsed = _parse(field, text, shift)
    if parsed.cycle or parsed.after_switch:
        raise ScheduleError(f"{field}: give step lists only, without a group that repeats for ever and without '@'")
    return parsed.chunks


def _parse(field: str, text: str, shift: float) -> DiagonalSchedule:
    try:
        return DiagonalSchedule.parse(text, shift)
    except ScheduleError as error:
        raise ScheduleError(f"{field}: {error}") from error


def parts_of(
    chunks: Sequence[Sequence[float]],
    cycle: Sequence[Sequence[float]],
    after_switch: Sequence[Sequence[float]],
    shift: float,
) -> dict[str, str]:
    """Edited lists -> the texts of the three fields, in the usual notation.

    Raises:
        ScheduleError: lists that are no schedule.
    """
    checked = DiagonalSchedule.from_steps(chunks, cycle=cycle, after_switch=after_switch, shift=shift)

    def text(lists: Sequence[Sequence[float]]) -> str:
        return DiagonalSchedule.from_steps(lists, shift=shift).text() if lists else ""

    return {"steps": text(checked.chunks), "cycle": text(checked.cycle), "after_switch": text(checked.after_switch)}


def describe(schedule: DiagonalSchedule, chunks: int) -> dict[str, Any]:
    """What the editor draws: step lists of every part, their true timesteps, and the count of the first chunks."""
    return {
        "chunks": schedule.chunks,
        "cycle": schedule.cycle,
        "after_switch": schedule.after_switch,
        "shown": [schedule.schedule_timesteps(chunk) for chunk in range(chunks)],
        "true": [true_timesteps(schedule, chunk) for chunk in range(chunks)],
        "text": schedule.text(),
        "forwards": schedule.forwards(chunks),
    }


def true_timesteps(schedule: DiagonalSchedule, chunk: int) -> list[float]:
    """1000 sigma of each step: what the model is given."""
    return [SCHEDULE_TIMESTEPS * sigma for sigma in schedule.sigmas(chunk)]
