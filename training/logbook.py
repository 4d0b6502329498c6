"""A run's numbers over its iterations: `log.jsonl`, a line each, and the same for `boards`.

After a kill the log may be ahead of the saved state. What is ahead is dropped when the run goes on, so that no
iteration is in it twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diag_core.replacing import replacing

from .boards import Board, boards
from .distributed import is_main

FILE = "log.jsonl"


class Logbook:
    """Appends to the log of `folder`, which is at iteration `step`. Of many processes one alone writes.

    Args:
        wandb: a project of Weights & Biases that the numbers go to as well; "" for none.
        settings: what such a project shows of the run.

    Raises:
        OSError: it cannot be written.
        ValueError: Weights & Biases is asked for and cannot be used.
    """

    def __init__(self, folder: Path, step: int, *, wandb: str = "", settings: Mapping[str, Any] | None = None) -> None:
        self.path = folder / FILE
        self._boards: list[Board] = []
        if not is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(entry) for entry in read_log(folder) if entry["step"] <= step]
        with replacing(self.path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())
        self._boards = boards(folder, step, wandb, settings or {})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of values at iteration `step`, on disk when this returns."""
        if not is_main():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for board in self._boards:
            board.write(step, values)

    def close(self) -> None:
        for board in self._boards:
            board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, oldest first; a last line that a kill cut short is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
