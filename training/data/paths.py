"""Where the digits of a clip go: what the prompt leaves open is drawn here, and paths follow from it.

Shapes: T pixel frames; paths [T,2] as (x, y) in pixels, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checks import require, require_above_zero, require_at_least
from .prompts import DIRECTIONS, Mover, Scene

# Two digits may cross; of this many draws of their paths the one with the least overlap is taken.
_PAIR_DRAWS = 8


@dataclass(frozen=True, kw_only=True)
class MovingDigitsConfig:
    """Sizes and motion of the rendered videos. Lengths in pixels, times in pixel frames."""

    size: int = 64
    """height and width"""
    num_pixel_frames: int = 81
    fps: int = 16
    digit_size: float = 28.0
    """side of the square that the 8x8 scan fills"""
    pair_size: float = 22.0
    """the same for the two digits of a pair"""
    glyph_raster: int = 40
    """side of the upsampled glyph that frames are resampled from"""
    slow: float = 0.6
    """pixels a frame"""
    fast: float = 1.4
    circling: float = 1.0
    speed_jitter: float = 0.08
    """relative, uniform to both sides"""
    start_jitter: float = 5.0
    """how far from its edge a digit may start, uniform"""
    rotation: float = 10.0
    """degrees to both sides, training scans only"""
    scale: float = 0.08
    """relative, to both sides, training scans only"""

    def __post_init__(self) -> None:
        require(self.size >= 16 and self.size % 16 == 0, "data.size", "must be a multiple of 16", self.size)
        frames = self.num_pixel_frames
        require(frames >= 1 and frames % 4 == 1, "data.num_pixel_frames", "must be 1, 5, 9, ..", frames)
        require_above_zero(self, "fps", "digit_size", "pair_size", "glyph_raster", "slow", "fast", "circling")
        require_at_least(self, 0, "speed_jitter", "start_jitter", "rotation", "scale")

    @classmethod
    def at(cls, size: int) -> MovingDigitsConfig:
        """The same videos at another height and width."""
        k = size / cls.size
        names = ("digit_size", "pair_size", "slow", "fast", "circling", "start_jitter")
        lengths = {name: k * getattr(cls, name) for name in names}
        return replace(cls(), size=size, glyph_raster=round(k * cls.glyph_raster), **lengths)


@dataclass(frozen=True, kw_only=True)
class Body:
    """One digit of a clip: what the prompt leaves open."""

    scan: int
    """index into load_digits"""
    side: float
    """of the square that the scan fills, pixels"""
    rotation: float
    """degrees"""
    margin: float
    """closest distance of its centre to the edge, pixels"""
    start: float
    """distance along the direction from the closest allowed start, pixels; of a circle, the angle in turns"""
    across: float
    """0..1 over what is free on the other axis; of a circle, of its centre's y"""
    corner: float
    """0..1: how far it goes before it turns; of a circle, how wide it is"""
    middle: float
    """0..1 over what is free: of a circle, of its centre's x"""
    pace: float
    """pixels a frame"""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video before rendering."""

    scene: Scene
    bodies: tuple[Body, ...]
    """one for each mover of the scene"""


def draw_bodies(
    rng: np.random.Generator, scene: Scene, scans: Sequence[int], config: MovingDigitsConfig, *, augmented: bool
) -> tuple[Body, ...]:
    """A body for each digit of a scene, with these scans; the two of a pair keep apart as well as a few draws allow."""
    if len(scans) == 1:
        return (draw_body(rng, scene.movers[0], scans[0], config.digit_size, config, augmented=augmented),)
    frames = np.linspace(0, config.num_pixel_frames - 1, 24)
    draws = []
    for _ in range(_PAIR_DRAWS):
        bodies = tuple(
            draw_body(rng, mover, scan, config.pair_size, config, augmented=augmented)
            for mover, scan in zip(scene.movers, scans, strict=True)
        )
        one, other = (path(mover, body, frames, config) for mover, body in zip(scene.movers, bodies, strict=True))
        # Digits are higher than wide: about so much of each hides the other.
        room = config.pair_size * np.array([0.85, 1.0]) - np.abs(one - other)
        draws.append((float(np.prod(np.maximum(room, 0), axis=1).sum()), bodies))
    return min(draws, key=lambda draw: draw[0])[1]


def draw_body(
    rng: np.random.Generator, mover: Mover, scan: int, side: float, config: MovingDigitsConfig, *, augmented: bool
) -> Body:
    """What a prompt leaves open of one digit, whose scan fills `side` pixels."""
    u = rng.random(7)
    augment = 1.0 if augmented else 0.0
    base = {"slowly": config.slow, "fast": config.fast, None: config.circling}[mover.speed]
    return Body(
        scan=scan,
        side=float(side * (1 + augment * config.scale * (2 * u[5] - 1))),
        rotation=float(augment * config.rotation * (2 * u[6] - 1)),
        margin=side / 2,
        start=float(u[0] * (1 if mover.motion == "circles" else config.start_jitter)),
        across=float(u[1]),
        corner=float(u[2]),
        middle=float(u[3]),
        pace=float(base * (1 + config.speed_jitter * (2 * u[4] - 1))),
    )


def path(mover: Mover, body: Body, frames: np.ndarray, config: MovingDigitsConfig) -> np.ndarray:
    """Centre of a digit at pixel frames [T] (fractions are fine) -> [T,2]."""
    low, high = body.margin, config.size - body.margin
    span = high - low
    out = np.empty((len(frames), 2))
    if mover.motion == "circles":
        radius = span * (0.28 + 0.12 * body.corner)
        free = span - 2 * radius
        angle = 2 * np.pi * body.start + body.pace / radius * frames  # clockwise on the screen
        out[:, 0] = low + radius + free * body.middle + radius * np.cos(angle)
        out[:, 1] = low + radius + free * body.across + radius * np.sin(angle)
        return out
    assert mover.direction is not None
    travelled = body.start + body.pace * frames
    if mover.motion == "bounces":
        along = span - np.abs(np.mod(travelled, 2 * span) - span)
    else:
        along = np.minimum(travelled, corner_distance(body, config) if mover.motion == "turns" else span)
    aside = np.full(len(frames), body.across * span)
    if mover.turn is not None:
        # It starts in the part that leaves room to turn to.
        room = np.minimum(0.4 * aside + (travelled - along), span)
        aside = room if sum(DIRECTIONS[mover.turn]) > 0 else span - room
    axis = 0 if DIRECTIONS[mover.direction][0] else 1
    forward = sum(DIRECTIONS[mover.direction]) > 0
    out[:, axis] = low + along if forward else high - along
    out[:, 1 - axis] = low + aside
    return out


def corner_distance(body: Body, config: MovingDigitsConfig) -> float:
    """How far from its closest allowed start a digit turns, pixels."""
    return (config.size - 2 * body.margin) * (0.55 + 0.2 * body.corner)
