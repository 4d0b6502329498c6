"""A run's numbers over its iterations: `log.jsonl`, a line each, and the same for TensorBoard where that is installed.

After a kill the log may be ahead of the saved state. What is ahead is dropped when the run goes on, so that no
iteration is in it twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diag_core.safetensors_file import replacing

from .distributed import is_main

log = logging.getLogger(__name__)

FILE = "log.jsonl"


class Logbook:
    """Appends to the log of `folder`, which is at iteration `step`. Of many processes one alone writes.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        self._board: Any = None
        if not is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(entry) for entry in read_log(folder) if entry["step"] <= step]
        with replacing(self.path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())
        self._board = _tensorboard(folder, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of values at iteration `step`, on disk when this returns."""
        if not is_main():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


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


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard curves: pip install tensorboard for them; %s has the numbers", folder / FILE)
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
