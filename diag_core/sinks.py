"""Where pictures go as they come: a video file, or a folder of numbered PNG files.

A sink is a context manager with `write`. Left normally, what it wrote is complete; left by an error, or killed, what
was written so far stays and can be looked at.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor

from .pictures import to_uint8, write_png
from .provenance import generated_xmp

_NUMBERED = re.compile(r"[0-9]{6,}\.png|\.[0-9]{6,}\.png\.[0-9a-f]{8}\.part")  # or what a killed process left of one


class FrameSink(Protocol):
    @property
    def part(self) -> Path:
        """Where the frames are that were written before it was complete."""
        ...

    @property
    def frames(self) -> int:
        """Pixel frames written so far."""
        ...

    def write(self, pixels: Tensor) -> None:
        """Append frames: float [1,3,T,H,W] in -1..1 (clamped), or uint8 [T,H,W,3], on any device."""
        ...

    def __enter__(self) -> FrameSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PngSequence:
    """Writes 000001.png, 000002.png, ... into a folder; each file is whole or absent.

    Args:
        replace: the numbered PNGs that are in the folder give way, all of them, when the first frame comes.
        metadata: JSON-able; kept in every file's "Comment", and its "title", if any, as "Title".
        mark_generated: put the mark of generated media into every file.

    Raises:
        OSError: the folder exists with something in it (with `replace`, something else), or cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        replace: bool = False,
        metadata: Mapping[str, Any] | None = None,
        mark_generated: bool = True,
    ) -> None:
        self.part = Path(folder)
        self.part.mkdir(parents=True, exist_ok=True)
        self._old = numbered_pngs(self.part)
        if self._old and not replace:
            raise FileExistsError(f"{folder}: there is something in this folder already; give an empty or a new one")
        self.frames = 0
        values = dict(metadata or {})
        title = str(values.pop("title")) if "title" in values else None
        self._texts = {} if title is None else {"Title": title}
        self._texts["Comment"] = json.dumps(values, ensure_ascii=False)
        self._xmp = generated_xmp(title=title) if mark_generated else None

    def write(self, pixels: Tensor) -> None:
        images = to_uint8(pixels).cpu()
        while self._old:
            self._old.pop().unlink(missing_ok=True)
        for image in images:
            write_png(self.part / f"{self.frames + 1:06d}.png", image, xmp=self._xmp, texts=self._texts)
            self.frames += 1

    def __enter__(self) -> PngSequence:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.frames and not any(self.part.iterdir()):
            self.part.rmdir()


def numbered_pngs(folder: Path) -> list[Path]:
    """The frames that a `PngSequence` left in a folder.

    Raises:
        FileExistsError: there is something else in it.
        OSError: it cannot be read, or is no folder.
    """
    found = list(folder.iterdir())
    for path in found:
        if not _NUMBERED.fullmatch(path.name) or path.is_dir():
            raise FileExistsError(f"{folder}: there is something else in this folder ({path.name}); give another one")
    return found
