"""Samples of a run: of videos an MP4 with them side by side and a picture with a row of frames for each, of single
frames a picture.

Shapes: N videos, T pixel frames; pixels [N,3,T,H,W] in -1..1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diag_core.geometry import DEFAULT_FPS
from diag_core.mp4_writer import Mp4Writer
from diag_core.pictures import frame_strip, to_uint8, write_png

SHOWN = 8
"""videos, of those that are judged"""
STRIP_FRAMES = 8


def save_videos(folder: Path, name: str, pixels: Tensor, *, fps: float = DEFAULT_FPS) -> None:
    """Writes `name`.mp4 and `name`.png of the first videos, each whole or not at all; of single frames the latter
    alone, with all in one row.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = pixels[:SHOWN].float().cpu()
    if shown.shape[2] == 1:
        write_png(folder / f"{name}.png", torch.cat([to_uint8(video[None])[0] for video in shown], dim=1))
        return
    count = min(STRIP_FRAMES, shown.shape[2])
    rows = [frame_strip(video[None], count) for video in shown]
    gap = rows[0].new_full((2, rows[0].shape[1], 3), 255)
    write_png(folder / f"{name}.png", torch.cat([part for row in rows for part in (gap, row)][1:]))
    side_by_side = torch.cat([to_uint8(video[None]) for video in shown], dim=2)
    path = folder / f"{name}.mp4"
    with Mp4Writer(path, width=side_by_side.shape[2], height=side_by_side.shape[1], fps=fps) as writer:
        writer.write(side_by_side)
