"""Prompts from the files people have: plain text (VidProM's published filtered list is such a file) and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

FIELDS = ("prompt", "text", "caption")
"""of a JSON line, the first one that is there"""
_JSON_LINES = (".jsonl", ".ndjson")


def read_prompts(path: Path) -> list[str]:
    """Prompts in the file's order, each once; empty lines are left out.

    Raises:
        ValueError: no such file, not UTF-8, a line that is no prompt, or none at all; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start}). Convert it") from error
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror}). Give a file of prompts, one a line") from error
    is_json = path.suffix.lower() in _JSON_LINES
    found = []
    # Not splitlines(): a prompt may hold a separator of another kind, which is no new prompt.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line:
            found.append(_of_json(line, f"{path}, line {number}") if is_json else line)
    prompts = list(dict.fromkeys(found))
    if not prompts:
        raise ValueError(f"{path}: it holds no prompts. Give a file with one a line")
    return prompts


def _of_json(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: it is no JSON ({error}). Each line is an object with a field prompt") from error
    prompt = _first(entry, FIELDS) if isinstance(entry, dict) else entry
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: it has no text under any of {', '.join(FIELDS)}")
    return prompt.strip()


def _first(entry: dict[str, object], names: Sequence[str]) -> object:
    return next((entry[name] for name in names if entry.get(name) is not None), None)
