"""How far a video is, for the browser and the console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
from tqdm.auto import tqdm

from ..diag_core.chunk_loop import Forward
from . import comfy_bridge
from .pace import Pace


class Progress:
    """Forwards done, in the browser and on the console; ends the sampling where the user has asked for it."""

    def __init__(self, total: int, disable: bool | None) -> None:
        self.total, self.done = total, 0
        self.bar = comfy.utils.ProgressBar(total)
        self.console = tqdm(total=total, disable=disable, desc="Diagonal Sampler", unit="forward")
        self.pace, self.picture_pace = Pace(100, 4), Pace(10, 1)

    def forward(self, forward: Forward) -> None:
        self.done += 1
        if forward.kind == "recache":
            self.total += 1
            self.console.total = self.total
        self.console.set_postfix_str(f"chunk {forward.chunk + 1}", refresh=False)
        self.console.update()
        if self.done == self.total or self.pace.allows():
            self.bar.update_absolute(self.done, self.total)
        comfy_bridge.check_interrupted()

    def picture(self, make: Callable[[], tuple[str, Any, int]]) -> None:
        if self.picture_pace.allows():
            self.bar.update_absolute(self.done, self.total, make())

    def close(self) -> None:
        self.console.close()
