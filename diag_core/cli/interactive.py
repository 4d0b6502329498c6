"""`generate --interactive`: prompts typed while the video is made."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from torch import Tensor

from ..chunk_loop import Chunk
from ..geometry import seconds_at
from ..live import LivePrompts, Switch

STOP = "/stop"


@dataclass
class Console:
    """Reads a prompt a line, on a thread that dies with the process, and says what became of it.

    A line that is the number of a slot stands for that prompt; "/stop" ends the video after the chunk in the making.
    """

    live: LivePrompts
    fps: float
    keep: Callable[[Sequence[Switch]], object] = lambda log: None
    """called with all prompts that have taken effect, each time one does"""
    lines: TextIO = field(default_factory=lambda: sys.stdin)
    out: TextIO = field(default_factory=lambda: sys.stderr)
    stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        if isinstance(self.lines, io.TextIOWrapper):  # one bad byte must not end the reading of all later lines
            self.lines.reconfigure(errors="replace")
        self.live.on_switch, self.live.on_error = self._switched, self._failed
        self._say(f"type a prompt and Enter to change the video, {STOP} to end it")
        for number, prompt in enumerate(self.live.slots, start=1):
            self._say(f"  {number}  {prompt}")
        threading.Thread(target=self._read, name="prompts", daemon=True).start()

    def until_stopped(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            yield chunk
            if self.stopped.is_set():
                return

    def _read(self) -> None:
        for line in self.lines:
            if line.strip() == STOP:
                self.stopped.set()
                return
            if not line.strip():
                continue
            try:
                self._say(f"from the next chunk on: {self.live.say(line)}")
            except ValueError as error:
                self._say(str(error))

    def _switched(self, switch: Switch) -> None:
        at = seconds_at(switch.start_latent_frame, self.fps)
        self._say(f"{at:.2f} s: {switch.prompt} ({1000 * switch.waited:.0f} ms after it was asked for)")
        try:
            self.keep(self.live.log)
        except OSError as error:  # the video goes on; the end tries again
            self._say(f"note: the prompts are not on disk: {error}")

    def _failed(self, prompt: str, error: Exception) -> None:
        self._say(f"not understood, the video goes on as it was: {prompt} ({error})")

    def _say(self, text: str) -> None:
        print(f"\n{text}" if self.out.isatty() else text, file=self.out, flush=True)


def live_prompts(encode: Callable[[str], Tensor], slots: Sequence[str]) -> LivePrompts:
    """Slots are encoded at once: they take effect without delay."""
    live = LivePrompts(encode, prepared=slots)
    live.prepare()
    return live
