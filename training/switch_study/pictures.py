"""Pictures of the study: shares over chunks, and frames around the switch. Needs Pillow.

Shapes: T pixel frames; videos [3,T,H,W] in -1..1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diag_core.geometry import DEFAULT_FPS, first_pixel_frame_of
from diag_core.video import to_uint8

from .sampling import CONTROL

_SCALE = 2  # lines are drawn large and shrunk: smooth edges
_GROUND, _PANEL, _LINE, _TEXT, _FAINT = (24, 26, 31), (33, 36, 43), (58, 63, 74), (226, 229, 235), (139, 146, 158)
_COLOURS = {"off": (255, 158, 74), "chunks": (92, 156, 255), "joint": (205, 124, 232)}
_BETWEEN = (150, 158, 170)
_TITLES = {"digit": "digit", "colour": "colour", "direction": "direction"}


class _Canvas:
    """Drawing in the units of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, what: str, size: int, fill: tuple[int, ...] = _TEXT, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.draw.text((x * _SCALE, y * _SCALE), what, fill=fill, font=font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], fill: tuple[int, ...], width: float = 1) -> None:
        self.draw.line(
            [(x * _SCALE, y * _SCALE) for x, y in points], fill=fill, width=round(width * _SCALE), joint="curve"
        )

    def dashes(
        self, points: Sequence[tuple[float, float]], fill: tuple[int, ...], width: float, *, on: float, off: float
    ) -> None:
        """A line through the points in dashes, whose rhythm goes on round the corners."""
        at = 0.0
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            done = 0.0
            while done < length:
                phase = at % (on + off)
                piece = min(length - done, (on if phase < on else on + off) - phase)
                if phase < on:
                    a, b = done / length, (done + piece) / length
                    ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
                    self.line(ends, fill, width)
                # A grain, or rounding could leave a piece of no length for ever.
                done, at = done + piece + 1e-6, at + piece + 1e-6

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...], radius: float = 0) -> None:
        self.draw.rounded_rectangle([v * _SCALE for v in (x0, y0, x1, y1)], radius=radius * _SCALE, fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: tuple[int, ...] | None, outline: tuple[int, ...]) -> None:
        corners = [v * _SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=fill, outline=outline, width=round(1.6 * _SCALE))

    def finished(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def draw_shares(result: Mapping[str, Any]) -> Image.Image:
    """Share of videos that follow the new prompt by chunk: a panel an aspect, a line a variant with its 95% interval.

    Args:
        result: of the study.
    """
    panel, height, left, top, gap = 300, 300, 64, 92, 26
    width = left + len(_TITLES) * (panel + gap) + 4
    canvas = _Canvas(width, top + height + 150)
    canvas.text(left, 28, "Videos that follow the new prompt, by chunk after the switch", 20, anchor="lm")
    about = f"{result['pairs']} pairs of prompts, 95% bootstrap intervals"
    canvas.text(left, 54, about, 13, _FAINT, "lm")
    chunks = result["chunks"] - result["switch_chunk"]
    for number, (aspect, title) in enumerate(_TITLES.items()):
        x0 = left + number * (panel + gap)

        def x_of(chunk: float, x0: float = x0) -> float:
            return x0 + panel * (chunk + 0.5) / chunks

        def y_of(share: float) -> float:
            return top + 12 + (height - 24) * (1 - share)

        canvas.box(x0, top, x0 + panel, top + height, _PANEL, 8)
        canvas.text(x0 + panel / 2, top - 14, title, 16)
        for level in (0, 0.25, 0.5, 0.75, 1):
            canvas.line([(x0 + 6, y_of(level)), (x0 + panel - 6, y_of(level))], _LINE)
            if number == 0:
                canvas.text(x0 - 8, y_of(level), f"{100 * level:.0f}%", 13, _FAINT, "rm")
        for chunk in range(chunks):
            canvas.text(x_of(chunk), top + height + 16, str(chunk + 1), 14, _FAINT)
        control = result["control"]
        for against, rhythm in (("against_own_prompt", (7, 4)), ("against_new_prompt", (2, 4))):
            shares = [share["value"] for share in control[against]["share"][aspect]]
            if None not in shares:
                points = [(x_of(chunk), y_of(share)) for chunk, share in enumerate(shares)]
                canvas.dashes(points, _BETWEEN, 1.5, on=rhythm[0], off=rhythm[1])
        variants = list(result["variants"].values())
        for place, variant in enumerate(variants):
            # Beside each other, so that equal shares do not hide one another.
            aside = (place - (len(variants) - 1) / 2) * min(0.1, 0.6 / len(variants))
            _draw_variant(canvas, variant, aspect, lambda c, a=aside: x_of(c + a), y_of)
    canvas.text(left + (width - left) / 2, top + height + 38, "chunk after the switch", 13, _FAINT)
    _draw_legend(canvas, result, left, top + height + 76)
    return canvas.finished()


def _draw_variant(canvas: _Canvas, variant: Mapping[str, Any], aspect: str, x_of: Any, y_of: Any) -> None:
    colour, extra = _COLOURS[variant["recache"]], variant["extra_steps"]
    shares = [(chunk, share) for chunk, share in enumerate(variant["share"][aspect]) if share["value"] is not None]
    for chunk, share in shares:
        canvas.line([(x_of(chunk), y_of(share["lower"])), (x_of(chunk), y_of(share["upper"]))], _dim(colour), 1.2)
    points = [(x_of(chunk), y_of(share["value"])) for chunk, share in shares]
    if extra:
        canvas.dashes(points, colour, 1.6, on=5, off=3)
    else:
        canvas.line(points, colour, 1.6)
    for x, y in points:
        canvas.dot(x, y, 3.4, _PANEL if extra else colour, colour)


def _draw_legend(canvas: _Canvas, result: Mapping[str, Any], x: float, y: float) -> None:
    """Two rows: without and with extra steps; the control after them."""
    columns: dict[str, float] = {}
    for name, variant in result["variants"].items():
        recache, extra = variant["recache"], variant["extra_steps"]
        cx, cy = x + columns.setdefault(recache, 236.0 * len(columns)), y + 26 * extra
        colour = _COLOURS[recache]
        if extra:
            canvas.dashes([(cx, cy), (cx + 30, cy)], colour, 1.6, on=5, off=3)
        else:
            canvas.line([(cx, cy), (cx + 30, cy)], colour, 1.6)
        canvas.dot(cx + 15, cy, 3.4, _GROUND if extra else colour, colour)
        canvas.text(cx + 38, cy, name, 13, anchor="lm")
    cx = x + 236.0 * len(columns)
    for row, (what, rhythm) in enumerate(
        (("no switch: its own prompt", (7, 4)), ("no switch: the new prompt", (2, 4)))
    ):
        canvas.dashes([(cx, y + 26 * row), (cx + 30, y + 26 * row)], _BETWEEN, 1.5, on=rhythm[0], off=rhythm[1])
        canvas.text(cx + 38, y + 26 * row, what, 13, anchor="lm")


def draw_frames(
    videos: Mapping[str, Tensor], prompts: tuple[str, str], result: Mapping[str, Any], *, columns: int = 9
) -> Image.Image:
    """Frames of one pair around the switch: a row a variant, a column a pixel frame.

    Args:
        videos: variant (and control) -> [3,T,H,W].
        prompts: before and after the switch.
    """
    tile, gap, left, top = 100, 4, 196, 96
    switch = first_pixel_frame_of(result["switch_chunk"] * result["settings"]["chunk_frames"])
    length = next(iter(videos.values())).shape[1]
    after = max(1, columns - 2)
    picks = [max(0, switch - 9), switch - 1]
    picks += [switch + round(i * (length - 1 - switch) / max(1, after - 1)) for i in range(after)]
    divide = 10  # between before and after
    width = left + len(picks) * (tile + gap) + divide + 12
    canvas = _Canvas(width, top + len(videos) * (tile + gap) + 10)
    canvas.text(20, 24, f"before: {prompts[0]}", 15, anchor="lm")
    canvas.text(20, 48, f"after: {prompts[1]}", 15, anchor="lm")

    def x_of(column: int) -> float:
        return left + column * (tile + gap) + (divide if column >= 2 else 0)

    bar = x_of(2) - (gap + divide) / 2
    canvas.line([(bar, top - 24), (bar, top + len(videos) * (tile + gap))], _TEXT, 1.5)
    for column, frame in enumerate(picks):
        when = (frame - switch) / DEFAULT_FPS
        canvas.text(x_of(column) + tile / 2, top - 14, f"{when:+.2f} s", 13, _FAINT)
    for row, (name, video) in enumerate(videos.items()):
        y = top + row * (tile + gap)
        colour = _FAINT if name == CONTROL else _COLOURS[result["variants"][name]["recache"]]
        canvas.box(left - 10, y + 8, left - 6, y + tile - 8, colour, 2)
        for number, part in enumerate(name.split(", ")):
            canvas.text(left - 20, y + tile / 2 + 20 * (number - name.count(", ") / 2), part, 14, anchor="rm")
        frames = to_uint8(video[None][:, :, torch.tensor(picks)])
        for column, frame_HWC in enumerate(frames):
            picture = Image.fromarray(frame_HWC.numpy()).resize((tile * _SCALE,) * 2, Image.Resampling.BICUBIC)
            canvas.image.paste(picture, (round(x_of(column) * _SCALE), y * _SCALE))
    return canvas.finished()


def _dim(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(round(0.45 * c + 0.55 * p) for c, p in zip(colour, _PANEL, strict=True))  # type: ignore[return-value]
