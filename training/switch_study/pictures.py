"""Pictures of the study: shares over chunks, and frames around the switch. Needs Pillow.

Shapes: T pixel frames; videos [3,T,H,W] in -1..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diag_core.geometry import DEFAULT_FPS, first_pixel_frame_of
from diag_core.pictures import to_uint8

from ..canvas import BLUE, FAINT, GROUND, LINE, ORANGE, PANEL, TEXT, VIOLET, Canvas, Colour
from .sampling import CONTROL

_COLOURS = {"off": ORANGE, "chunks": BLUE, "joint": VIOLET}
_BETWEEN = (150, 158, 170)
_TITLES = {"digit": "digit", "colour": "colour", "direction": "direction"}


def draw_shares(result: Mapping[str, Any]) -> Image.Image:
    """Share of videos that follow the new prompt by chunk: a panel an aspect, a line a variant with its 95% interval.

    Args:
        result: of the study.
    """
    panel, height, left, top, gap = 300, 300, 64, 92, 26
    width = left + len(_TITLES) * (panel + gap) + 4
    canvas = Canvas(width, top + height + 150)
    canvas.text(left, 28, "Videos that follow the new prompt, by chunk after the switch", 20, anchor="lm")
    about = f"{result['pairs']} pairs of prompts, 95% bootstrap intervals"
    canvas.text(left, 54, about, 13, FAINT, "lm")
    chunks = result["chunks"] - result["switch_chunk"]
    for number, (aspect, title) in enumerate(_TITLES.items()):
        x0 = left + number * (panel + gap)

        def x_of(chunk: float, x0: float = x0) -> float:
            return x0 + panel * (chunk + 0.5) / chunks

        def y_of(share: float) -> float:
            return top + 12 + (height - 24) * (1 - share)

        canvas.box(x0, top, x0 + panel, top + height, PANEL, 8)
        canvas.text(x0 + panel / 2, top - 14, title, 16)
        for level in (0, 0.25, 0.5, 0.75, 1):
            canvas.line([(x0 + 6, y_of(level)), (x0 + panel - 6, y_of(level))], LINE)
            if number == 0:
                canvas.text(x0 - 8, y_of(level), f"{100 * level:.0f}%", 13, FAINT, "rm")
        for chunk in range(chunks):
            canvas.text(x_of(chunk), top + height + 16, str(chunk + 1), 14, FAINT)
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
    canvas.text(left + (width - left) / 2, top + height + 38, "chunk after the switch", 13, FAINT)
    _draw_legend(canvas, result, left, top + height + 76)
    return canvas.finished()


def _draw_variant(canvas: Canvas, variant: Mapping[str, Any], aspect: str, x_of: Any, y_of: Any) -> None:
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
        canvas.dot(x, y, 3.4, PANEL if extra else colour, colour)


def _draw_legend(canvas: Canvas, result: Mapping[str, Any], x: float, y: float) -> None:
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
        canvas.dot(cx + 15, cy, 3.4, GROUND if extra else colour, colour)
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
    canvas = Canvas(width, top + len(videos) * (tile + gap) + 10)
    canvas.text(20, 24, f"before: {prompts[0]}", 15, anchor="lm")
    canvas.text(20, 48, f"after: {prompts[1]}", 15, anchor="lm")

    def x_of(column: int) -> float:
        return left + column * (tile + gap) + (divide if column >= 2 else 0)

    bar = x_of(2) - (gap + divide) / 2
    canvas.line([(bar, top - 24), (bar, top + len(videos) * (tile + gap))], TEXT, 1.5)
    for column, frame in enumerate(picks):
        when = (frame - switch) / DEFAULT_FPS
        canvas.text(x_of(column) + tile / 2, top - 14, f"{when:+.2f} s", 13, FAINT)
    for row, (name, video) in enumerate(videos.items()):
        y = top + row * (tile + gap)
        colour = FAINT if name == CONTROL else _COLOURS[result["variants"][name]["recache"]]
        canvas.box(left - 10, y + 8, left - 6, y + tile - 8, colour, 2)
        for number, part in enumerate(name.split(", ")):
            canvas.text(left - 20, y + tile / 2 + 20 * (number - name.count(", ") / 2), part, 14, anchor="rm")
        frames = to_uint8(video[None][:, :, torch.tensor(picks)])
        for column, frame_HWC in enumerate(frames):
            canvas.frame(x_of(column), y, tile, frame_HWC)
    return canvas.finished()


def _dim(colour: Colour) -> Colour:
    return tuple(round(0.45 * c + 0.55 * p) for c, p in zip(colour, PANEL, strict=True))
