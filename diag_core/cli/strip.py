"""Put frames of videos into one picture: a row a video, first frame left, last frame right."""

from __future__ import annotations

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from . import values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="all of one size")
    add("--out", type=Path, required=True, metavar="FILE", help="PNG to write; one that is there is replaced")
    add("--count", type=values.positive, default=9, metavar="N", help="frames of each video (default: %(default)s)")
    add("--scale", type=values.positive, default=1, metavar="N", help="enlarge every pixel to N x N (default: 1)")


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """As a shell does it that knows patterns, which those of Windows do not."""
    found: list[Path] = []
    for path in paths:
        matches = [] if path.exists() else sorted(map(Path, glob.glob(str(path))))
        found += matches or [path]
    return found


def run(options: argparse.Namespace) -> int:
    """Raises ValueError or OSError for a file that is no video, too short, or of another size than the first."""
    import torch

    from ..pictures import frame_strip, write_png
    from ..video_reader import read_video

    gap = 2
    rows: list[torch.Tensor] = []
    for path in _expanded(options.videos):
        frames = read_video(path)
        if len(frames) < options.count:
            raise ValueError(f"{path}: it has {len(frames)} frames, fewer than --count {options.count}")
        frames = frames.repeat_interleave(options.scale, 1).repeat_interleave(options.scale, 2)
        row = frame_strip(frames, options.count, gap=gap)
        if rows and row.shape != rows[0].shape:
            raise ValueError(f"{path}: its frames are not of the size of those before it")
        if rows:
            rows.append(row.new_full((gap, *row.shape[1:]), 255))
        rows.append(row)
    write_png(options.out, torch.cat(rows))
    print(options.out)
    return 0
