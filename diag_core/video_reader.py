"""Reading images and videos, by PyAV, which is imported when first used.

Shapes: T pixel frames, H W pixels.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """A PNG, JPEG or other image (of a video, its first frame) as uint8 [H,W,3]; transparency is dropped.

    Raises:
        ValueError: it is no image.
        OSError: it cannot be read.
    """
    what = "an image (a PNG or JPEG is best)"
    with _reading(path, what):
        return _picture(next(_decoded(path, what)))


def read_video(path: str | os.PathLike[str], last: int | None = None) -> Tensor:
    """The last `last` frames of a video, or all, uint8 [T,H,W,3]. Memory holds no others, however long the video is.

    Raises:
        ValueError: it is no video.
        OSError: it cannot be read.
    """
    with _reading(path, "a video"):
        frames = deque(_decoded(path, "a video"), maxlen=last)
        return torch.stack([_picture(frames.popleft()) for _ in range(len(frames))])


def count_frames(path: str | os.PathLike[str]) -> int:
    """How many frames `read_video` reads in all, keeping none of them. Raises as it does."""
    # By decoding: what the header says need not be so.
    with _reading(path, "a video"):
        return sum(1 for _ in _decoded(path, "a video"))


def _decoded(path: str | os.PathLike[str], what: str) -> Iterator[Any]:
    """The frames of a file one by one, at least one."""
    found = False
    with open(path, "rb") as file, import_av().open(file) as container:
        for frame in container.decode(video=0):
            found = True
            yield frame
    if not found:
        raise ValueError(f"{path}: it cannot be read as {what}: it holds no frame")


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    av = import_av()
    try:
        yield
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: it cannot be read as {what}") from error


def _picture(frame: Any) -> Tensor:
    """uint8 [H,W,3]"""
    return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def import_av() -> Any:
    """The module, or a ValueError that says what to install."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError(f"videos and images need PyAV: pip install av ({error})") from error
    return av
