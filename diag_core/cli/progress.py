"""Progress on a terminal (one line, drawn over) or in a log (a line a chunk)."""

from __future__ import annotations

import sys
from typing import TextIO

from .pipeline import Progress

_WIDTH = 24


class ProgressBar:
    """Frames, frames a second and the time to the first frame, on `stream` (standard error by default)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.drawn = self.stream.isatty()
        self._length = 0

    def update(self, progress: Progress) -> None:
        if self.drawn:
            filled = _WIDTH * progress.pixel_frames // progress.of_pixel_frames
            self._draw(f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {_line(progress)}{_forward(progress)}")
        elif progress.forward is None:
            print(_line(progress), file=self.stream, flush=True)

    def finish(self) -> None:
        """Take the line away."""
        if self.drawn and self._length:
            self._draw("")
            self.stream.write("\r")
            self.stream.flush()

    def _draw(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self._length))
        self.stream.flush()
        self._length = len(text)


def _line(progress: Progress) -> str:
    line = f"{progress.pixel_frames}/{progress.of_pixel_frames} frames"
    if progress.first_frame_seconds is not None:
        line += f"  {progress.fps:.1f} FPS  first frame {progress.first_frame_seconds:.2f} s"
    return line


def _forward(progress: Progress) -> str:
    forward = progress.forward
    if forward is None:
        return ""
    step = f"step {forward.step}/{forward.steps}" if forward.kind == "step" else forward.kind
    return f"  chunk {forward.chunk + 1} {step}" if forward.chunk >= 0 else f"  given {step}"
