"""A stage's folder belongs to one recipe and to one set of inputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io import save_json

FILE = "recipe.json"
FREE = ("save_every", "log_every", "sample_every", "limits", "wandb")
"""fields that weights do not depend on: they may be changed when a stage goes on"""
ROUNDING = ("micro_batch", "checkpointing", "attention", "compiled")
"""fields that decide about memory and speed, and of weights about last bits alone, as the number of processes does: a
first try that found too little memory may go on with others"""


def begin(
    folder: Path, recipe: Any, inputs: Mapping[str, str], *, free: Sequence[str] = (), result: Path | None = None
) -> None:
    """Writes down what a stage in `folder` is made with, or checks it against what it was begun with.

    Args:
        recipe: a dataclass.
        inputs: digests of the files it starts from, by name.
        free: more fields that may be changed, and are then written down: such as how far a stage goes.
        result: what the stage ends with; once it is there, `free` is so no more. One that was put there by hand is
            taken as it is.

    Raises:
        ValueError: the folder was begun with another recipe or other inputs; names the first field that differs.
    """
    path = folder / FILE
    own = json.loads(json.dumps({"recipe": dataclasses.asdict(recipe), "inputs": dict(inputs)}))
    finished = result is not None and result.exists()
    if not path.exists():
        if not finished:  # what was put there by hand was made with nobody knows what
            save_json(path, own)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    allowed = (*FREE, *ROUNDING, *(() if finished else free))
    for part, what in (("recipe", "another recipe"), ("inputs", "other inputs")):
        was, now = flat(before[part]), flat(own[part])
        names = now if finished and part == "inputs" else {**was, **now}  # what was used up may be gone
        changed = [n for n in names if was.get(n) != now.get(n) and n.split(".")[0] not in allowed]
        if changed:
            name = changed[0]
            way = "delete the folder and what came of it, or choose another output folder"
            if part == "recipe" and name in free:
                way = f"delete {result} to go on from the last saved state"
            raise ValueError(
                f"{folder} was begun with {what}: {name} was {was.get(name)}, now it is {now.get(name)}. Go on with "
                f"what it was begun with, or {way}"
            )
    if own != before and not finished:
        save_json(path, own)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result
