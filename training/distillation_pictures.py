"""Pictures of a distillation: the same prompts stage by stage, and what was measured while it trained. Needs Pillow.

Shapes: T pixel frames; videos [3,T,H,W] in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from diag_core.geometry import DEFAULT_FPS
from diag_core.pictures import to_uint8

from .canvas import BLUE, FAINT, GREEN, LINE, ORANGE, PANEL, VIOLET, Canvas, Colour

COLOURS: tuple[Colour, ...] = (FAINT, GREEN, BLUE, ORANGE, VIOLET)


def draw_stages(
    videos: Mapping[str, Sequence[Tensor]], prompts: Sequence[str], notes: Mapping[str, str], *, columns: int = 9
) -> Image.Image:
    """Frames of each prompt: a row a stage, a column a pixel frame.

    Args:
        videos: stage -> a video of each prompt.
        notes: stage -> a few words below its name.
    """
    tile, gap, left, top, title = 84, 4, 150, 20, 40
    block = title + len(videos) * (tile + gap)
    canvas = Canvas(left + columns * (tile + gap) + 16, top + len(prompts) * block + 6)
    length = next(iter(videos.values()))[0].shape[1]
    picks = [round(i * (length - 1) / max(1, columns - 1)) for i in range(columns)]
    for number, prompt in enumerate(prompts):
        y0 = top + number * block
        canvas.text(left, y0 + 10, prompt, 14, anchor="lm")
        for row, (stage, made) in enumerate(videos.items()):
            y = y0 + title - 12 + row * (tile + gap)
            canvas.box(left - 10, y + 8, left - 6, y + tile - 8, COLOURS[row], 2)
            canvas.text(left - 20, y + tile / 2 - 9, stage, 14, anchor="rm")
            canvas.text(left - 20, y + tile / 2 + 10, notes[stage], 12, FAINT, "rm")
            frames = to_uint8(made[number][None][:, :, torch.tensor(picks)])
            for column, pixels_HWC in enumerate(frames):
                canvas.frame(left + column * (tile + gap), y, tile, pixels_HWC)
    for column, frame in enumerate(picks):
        canvas.text(left + column * (tile + gap) + tile / 2, top - 8, f"{frame / DEFAULT_FPS:.1f} s", 12, FAINT)
    return canvas.finished()


def draw_playing(
    videos: Mapping[str, Sequence[Tensor]], prompts: Sequence[str], notes: Mapping[str, str]
) -> list[Image.Image]:
    """The same videos beside each other as they play, a column a stage and a row a prompt: a picture a pixel frame.

    Arguments as `draw_stages`."""
    tile, gap, top, line = 160, 8, 52, 26
    width = 2 * gap + len(videos) * (tile + gap) - gap
    still = Canvas(width, top + len(prompts) * (tile + line) + 4)
    corners = []
    for column, stage in enumerate(videos):
        x = gap + column * (tile + gap)
        still.text(x + tile / 2, 18, stage, 15)
        still.text(x + tile / 2, 38, notes[stage], 12, FAINT)
        corners.append(x)
    for row, prompt in enumerate(prompts):
        still.text(gap, top + (row + 1) * (tile + line) - line / 2, prompt, 12, FAINT, "lm")
    background = still.finished()
    shown = {stage: [to_uint8(video[None]) for video in made] for stage, made in videos.items()}
    pictures = []
    for frame in range(next(iter(videos.values()))[0].shape[1]):
        picture = background.copy()
        for x, made in zip(corners, shown.values(), strict=True):
            for row, video in enumerate(made):
                tiles = Image.fromarray(video[frame].numpy()).resize((tile, tile), Image.Resampling.BICUBIC)
                picture.paste(tiles, (x, top + row * (tile + line)))
        pictures.append(picture)
    return pictures


@dataclass(frozen=True)
class Curve:
    """A number over the iterations of a stage."""

    name: str
    colour: Colour
    points: Sequence[tuple[float, float]]
    """(iteration, value)"""


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis."""

    title: str
    curves: Sequence[Curve]
    reference: float | None = None
    """drawn dashed: the teacher's value"""
    percent: bool = False


def draw_curves(panels: Sequence[Panel], *, columns: int = 3) -> Image.Image:
    """A panel each, whose axis begins at 0 unless its values are far from it."""
    width, height, left, top, gap_x, gap_y = 300, 190, 62, 46, 68, 76
    rows = math.ceil(len(panels) / columns)
    canvas = Canvas(left + columns * (width + gap_x), top + rows * (height + gap_y))
    for number, panel in enumerate(panels):
        x0 = left + number % columns * (width + gap_x)
        y0 = top + number // columns * (height + gap_y)
        _draw_panel(canvas, panel, x0, y0, width, height)
    return canvas.finished()


def _draw_panel(canvas: Canvas, panel: Panel, x0: float, y0: float, width: float, height: float) -> None:
    values = [value for curve in panel.curves for _, value in curve.points]
    values += [] if panel.reference is None else [panel.reference]
    last = max(step for curve in panel.curves for step, _ in curve.points)
    low, high = _axis(min(values), max(values), most=1.0 if panel.percent else math.inf)

    def place(step: float, value: float) -> tuple[float, float]:
        return (
            x0 + 8 + (width - 16) * step / max(1.0, last),
            y0 + 8 + (height - 16) * (high - value) / (high - low),
        )

    canvas.box(x0, y0, x0 + width, y0 + height, PANEL, 8)
    canvas.text(x0 + width / 2, y0 - 14, panel.title, 15)
    for part in range(5):
        level = low + (high - low) * part / 4
        canvas.line([place(0, level), place(last, level)], LINE)
        told = f"{100 * level:.0f}%" if panel.percent else f"{level:.3g}"
        canvas.text(x0 - 8, place(0, level)[1], told, 12, FAINT, "rm")
    for part in range(5):
        step = last * part / 4
        canvas.text(place(step, low)[0], y0 + height + 12, f"{step:.0f}", 12, FAINT)
    if panel.reference is not None:
        ends = [place(0, panel.reference), place(last, panel.reference)]
        canvas.dashes(ends, FAINT, 1.5, on=6, off=4)
    x = x0
    for curve in panel.curves:
        canvas.line([place(*point) for point in curve.points], curve.colour, 1.6)
        canvas.line([(x, y0 + height + 32), (x + 18, y0 + height + 32)], curve.colour, 2)
        canvas.text(x + 24, y0 + height + 32, curve.name, 12, anchor="lm")
        x += 40 + 7 * len(curve.name)
    if panel.reference is not None:
        canvas.dashes([(x, y0 + height + 32), (x + 18, y0 + height + 32)], FAINT, 1.5, on=6, off=4)
        canvas.text(x + 24, y0 + height + 32, "teacher", 12, anchor="lm")


def _axis(low: float, high: float, *, most: float) -> tuple[float, float]:
    """From 0, unless the values lie far from it and close together; not beyond `most`, than which there is no more."""
    if low >= 0 and low < 0.7 * high:
        low = 0.0
    margin = 0.05 * ((high - low) or 1.0)
    return (0.0 if low == 0 else low - margin), min(high + margin, max(high, most))
