"""What a study found, as the Markdown tables of its page; percentages and pixels, with 95% intervals."""

from __future__ import annotations

from typing import Any

from .sampling import CONTROL

Found = dict[str, Any]
_UNKNOWN = "–"  # noqa: RUF001
"""of no video, or never"""


def tables(result: Found) -> list[str]:
    """Lines of three tables: shares that follow the new prompt; when, and how far the digit jumps; and what recomputing
    and extra steps change, pair by pair.

    Args:
        result: of `study.run`.
    """
    return [*_shares(result), "", *_when(result), "", *_changes(result)]


def _rows(result: Found) -> dict[str, Found]:
    control = result["control"]
    own = {"forwards_after_switch": control["forwards_after_switch"], **control["against_own_prompt"]}
    return {**result["variants"], f"{CONTROL}, its own prompt": own}


def _shares(result: Found) -> list[str]:
    last = result["chunks"] - result["switch_chunk"]
    columns = [("digit", 1), ("digit", last), ("colour", 1), ("colour", 2), ("direction", 1), ("direction", last)]
    titles = [f"{aspect}, chunk {chunk}" for aspect, chunk in columns if chunk <= last]
    lines = _head(["", "forwards", *titles, f"all three, chunk {last}"])
    for name, found in _rows(result).items():
        shares = [found["share"][aspect][chunk - 1] for aspect, chunk in columns if chunk <= last]
        cells = [_percent(share) for share in (*shares, found["share"]["all"][-1])]
        lines.append(_line([name, str(found["forwards_after_switch"]), *cells]))
    return lines


def _when(result: Found) -> list[str]:
    aspects = ("digit", "colour", "direction")
    jumps = ["jump at the switch, pixels", "more than without a switch", "a step of 6 pixels or more"]
    lines = _head(["", *aspects, *jumps])
    for name, found in _rows(result).items():
        cells = [name]
        for aspect in aspects:
            until = found["chunks_until_right"][aspect]
            median, never = until["median"]["value"], until["never"]["value"]
            wrong = _UNKNOWN if never is None else f"{100 * never:.0f}%"
            cells.append(f"{_UNKNOWN if median is None else f'{median:.0f}'}; {wrong}")
        more = found["jump_over_control"]
        cells += [
            _range(found["jump"], ".1f"),
            "" if name.startswith(CONTROL) else _signed(more, "+.1f"),
            _percent(found["teleports"]),
        ]
        lines.append(_line(cells))
    return lines


def _changes(result: Found) -> list[str]:
    pairs = {
        "recache chunks, not off": ("recache chunks", "recache off"),
        "recache joint, not off": ("recache joint", "recache off"),
        "recache joint, not chunks": ("recache joint", "recache chunks"),
        **{
            f"extra steps, recache {kind}": (f"recache {kind}, extra steps", f"recache {kind}")
            for kind in ("off", "chunks", "joint")
        },
    }
    lines = _head(
        ["", "colour, chunk 1", "direction, chunk 1", "digit, mean of chunks", "direction, mean of chunks",
         "jump, pixels"]
    )  # fmt: skip
    for title, (one, other) in pairs.items():
        found = result["differences"].get(f"{one} minus {other}")
        if found is None:
            continue
        first, mean = found["first_chunk"], found["mean_of_chunks"]
        points = [first["colour"], first["direction"], mean["digit"], mean["direction"]]
        cells = [_signed(_in_points(interval), "+.0f") for interval in points]
        lines.append(_line([title, *cells, _signed(found["jump"], "+.2f")]))
    return lines


def _in_points(interval: Found) -> Found:
    return {name: None if value is None else 100 * value for name, value in interval.items()}


def _head(titles: list[str]) -> list[str]:
    return [_line(titles), "|---" * len(titles) + "|"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells).lstrip() + " |"


def _percent(share: Found) -> str:
    return _range(_in_points(share), ".0f", "%")


def _range(interval: Found, form: str, unit: str = "") -> str:
    if interval["value"] is None:
        return _UNKNOWN
    return f"{interval['value']:{form}}{unit} ({interval['lower']:{form}}–{interval['upper']:{form}})"  # noqa: RUF001


def _signed(interval: Found, form: str) -> str:
    if interval["value"] is None:
        return _UNKNOWN
    value, lower, upper = (_without_minus_zero(f"{interval[name]:{form}}") for name in ("value", "lower", "upper"))
    return f"{value} ({lower} to {upper})"


def _without_minus_zero(number: str) -> str:
    return number if float(number) else number.replace("-", "+")
