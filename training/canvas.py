"""A sheet to draw plots and rows of frames on. Needs Pillow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SCALE = 2  # lines are drawn large and shrunk: smooth edges
Colour = tuple[int, ...]
GROUND: Colour = (24, 26, 31)
PANEL: Colour = (33, 36, 43)
LINE: Colour = (58, 63, 74)
TEXT: Colour = (226, 229, 235)
FAINT: Colour = (139, 146, 158)
ORANGE: Colour = (255, 158, 74)
BLUE: Colour = (92, 156, 255)
VIOLET: Colour = (205, 124, 232)
GREEN: Colour = (96, 200, 130)


class Canvas:
    """Drawing in the units of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, what: str, size: int, fill: Colour = TEXT, anchor: str = "mm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), what, fill=fill, font=font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float = 1) -> None:
        self.draw.line(
            [(x * SCALE, y * SCALE) for x, y in points], fill=fill, width=round(width * SCALE), joint="curve"
        )

    def dashes(
        self, points: Sequence[tuple[float, float]], fill: Colour, width: float, *, on: float, off: float
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

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, radius: float = 0) -> None:
        self.draw.rounded_rectangle([v * SCALE for v in (x0, y0, x1, y1)], radius=radius * SCALE, fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour | None, outline: Colour) -> None:
        corners = [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=fill, outline=outline, width=round(1.6 * SCALE))

    def frame(self, x: float, y: float, side: float, pixels_HWC: Tensor) -> None:
        """A picture, uint8, in a square."""
        picture = Image.fromarray(pixels_HWC.numpy()).resize((round(side * SCALE),) * 2, Image.Resampling.BICUBIC)
        self.image.paste(picture, (round(x * SCALE), round(y * SCALE)))

    def finished(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)
