"""A picture of a diagonal schedule: chunks from left to right, noise from top to bottom.

Shapes: the picture is [1,H,W,3] in 0..1, as ComfyUI's IMAGE.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..diag_core import DiagonalSchedule
from .schedule_parts import true_timesteps

MAX_COLUMNS = 24
_SCALE = 2  # drawn large and shrunk: smooth edges
_GROUND, _PANEL, _LINE, _TEXT, _FAINT = (24, 26, 31), (33, 36, 43), (52, 57, 67), (226, 229, 235), (139, 146, 158)
_COLOURS = np.array(((92, 156, 255), (190, 118, 226), (255, 158, 74)))  # the fewest steps to the most


def draw_staircase(schedule: DiagonalSchedule, chunks: int) -> Tensor:
    """Columns for the first `chunks` chunks (24 at most); a bar a chunk, a mark a step with its true timestep."""
    from PIL import Image, ImageDraw, ImageFont

    shown = min(chunks, MAX_COLUMNS)
    column, height, left, top, bottom = (92 if shown <= 10 else 60), 300, 74, 58, 64
    width = max(560, left + shown * column + 24)
    image = Image.new("RGB", (width * _SCALE, (top + height + bottom) * _SCALE), _GROUND)
    draw = ImageDraw.Draw(image)

    def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size * _SCALE)

    def text(x: float, y: float, what: str, size: int, fill: tuple[int, ...], anchor: str = "mm") -> None:
        draw.text((x * _SCALE, y * _SCALE), what, fill=fill, font=font(size), anchor=anchor)

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...], radius: float = 0) -> None:
        draw.rounded_rectangle([v * _SCALE for v in (x0, y0, x1, y1)], radius=radius * _SCALE, fill=fill)

    def y_of(timestep: float) -> float:
        return top + height * (1 - timestep / 1000)

    most = max(schedule.steps(chunk) for chunk in range(shown))
    least = min(schedule.steps(chunk) for chunk in range(shown))
    rest = "" if chunks == shown else f"  (first {shown} of {chunks} chunks drawn)"
    heading = f"{_count(schedule.forwards(chunks), 'forward')} for {_count(chunks, 'chunk')}{rest}"
    text(left, 26, heading, 19, _TEXT, "lm")
    for level in (1000, 750, 500, 250, 0):
        box(left - 6, y_of(level) - 0.5, width - 18, y_of(level) + 0.5, _LINE)
        text(left - 14, y_of(level), str(level), 13, _FAINT, "rm")
    text(left - 14, top - 20, "noise", 13, _FAINT, "rm")
    for chunk in range(shown):
        x, timesteps = left + chunk * column, true_timesteps(schedule, chunk)
        share = (len(timesteps) - least) / (most - least) if most > least else 0.0
        colour = tuple(int(np.interp(2 * share, (0, 1, 2), channel)) for channel in _COLOURS.T)
        box(x + 5, top, x + column - 5, top + height, _PANEL, 6)
        bounds = [*timesteps, 0.0]
        for number, timestep in enumerate(timesteps):  # a bar from each level down to the next one
            strength = 0.30 + 0.55 * (number + 1) / len(timesteps)
            fill = tuple(int(g + (c - g) * strength) for g, c in zip(_PANEL, colour, strict=True))
            box(x + 9, y_of(timestep), x + column - 9, max(y_of(bounds[number + 1]) - 2, y_of(timestep) + 1), fill, 3)
            box(x + 9, y_of(timestep), x + column - 9, y_of(timestep) + 2.5, colour, 1)
            if y_of(bounds[number + 1]) - y_of(timestep) >= 15:
                text(x + column / 2, y_of(timestep) + 10, f"{timestep:.0f}", 12, _TEXT)
        text(x + column / 2, top + height + 18, _count(len(timesteps), "step"), 14, _TEXT)
        text(x + column / 2, top + height + 38, f"chunk {chunk + 1}" if column > 70 else str(chunk + 1), 12, _FAINT)
    image = image.resize((width, top + height + bottom), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
