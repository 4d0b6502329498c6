"""Sizes and positions: pixel frames <-> latent frames, tokens a latent frame, and how a video falls into chunks.

The VAE makes latent frame 0 from pixel frame 0 alone and every later latent frame k from the four pixel frames
4k-3 .. 4k; in space a latent cell is 8 x 8 pixels, and the transformer joins 2 x 2 cells into a token.
Counts ("how many frames") and indices ("which frame", 0-based) have separate functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

TIME_STRIDE = 4
PIXEL_STRIDE = 8
SPATIAL_PATCH = 2
DEFAULT_FPS = 16.0


class Span(NamedTuple):
    """`length` latent frames from latent frame `start` on."""

    start: int
    length: int


def latent_frames(pixel_frames: int) -> int:
    """How many latent frames hold `pixel_frames` >= 1 pixel frames; the last one may not be filled."""
    if pixel_frames < 1:
        raise ValueError(f"a video has at least 1 pixel frame, got {pixel_frames}")
    return -(-(pixel_frames - 1) // TIME_STRIDE) + 1


def pixel_frames(latent_frames: int) -> int:
    """How many pixel frames `latent_frames` >= 1 latent frames decode to: 4 (latent - 1) + 1."""
    if latent_frames < 1:
        raise ValueError(f"a video has at least 1 latent frame, got {latent_frames}")
    return TIME_STRIDE * (latent_frames - 1) + 1


def latent_frame_of(pixel_frame: int) -> int:
    """Index of the latent frame that holds pixel frame `pixel_frame` >= 0."""
    if pixel_frame < 0:
        raise ValueError(f"pixel frames count from 0, got {pixel_frame}")
    return -(-pixel_frame // TIME_STRIDE)


def first_pixel_frame_of(latent_frame: int) -> int:
    """Index of the first pixel frame that latent frame `latent_frame` >= 0 decodes to."""
    if latent_frame < 0:
        raise ValueError(f"latent frames count from 0, got {latent_frame}")
    return max(0, TIME_STRIDE * latent_frame - (TIME_STRIDE - 1))


def pixel_frame_at(seconds: float, fps: float = DEFAULT_FPS) -> int:
    """Index of the pixel frame nearest to `seconds` >= 0. Nearest, because 0.29 x 100 is 28.999999999999996."""
    _check_fps(fps)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be finite and not negative, got {seconds}")
    return math.floor(seconds * fps + 0.5)


def latent_frame_at(seconds: float, fps: float = DEFAULT_FPS) -> int:
    """Index of the latent frame shown at `seconds` >= 0."""
    return latent_frame_of(pixel_frame_at(seconds, fps))


def seconds_at(latent_frame: int, fps: float = DEFAULT_FPS) -> float:
    """When latent frame `latent_frame` begins to show, in seconds."""
    _check_fps(fps)
    return first_pixel_frame_of(latent_frame) / fps


def latent_frames_for(seconds: float, fps: float = DEFAULT_FPS) -> int:
    """How many latent frames a video of `seconds` needs, at least 1: 5 s at 16 fps are 80 pixel frames, so 21."""
    return latent_frames(max(1, pixel_frame_at(seconds, fps)))


def usable_pixel_frames(count: int, chunk_frames: int, most: int | None = None) -> int:
    """How many of `count` pictures become given latent frames: a multiple of the chunk, or one more.

    Where some must go, whole chunks are left: models were trained on those, and a first latent frame that stands alone
    is strange to them.

    Args:
        most: latent frames at most, such as the window's; at least one chunk is left.
    """
    latents = (count - 1) // TIME_STRIDE + 1
    if most is not None and latents > most:
        latents = max(chunk_frames, most - most % chunk_frames)
    rest = latents % chunk_frames
    return pixel_frames(latents if rest in (0, 1) else max(1, latents - rest))


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Pixel height and width -> latent ones. Both must be multiples of 16 (8 pixels a cell, 2 cells a token)."""
    step = PIXEL_STRIDE * SPATIAL_PATCH
    for name, size in (("height", height), ("width", width)):
        if size < step or size % step:
            below = max(step, size // step * step)
            raise ValueError(f"{name} must be a multiple of {step} pixels, got {size}; use {below} or {below + step}")
    return height // PIXEL_STRIDE, width // PIXEL_STRIDE


def tokens_per_frame(height: int, width: int) -> int:
    """Tokens of one latent frame of latent size height x width: 60 x 104 (480 x 832 pixels) gives 1560."""
    for name, size in (("height", height), ("width", width)):
        if size < SPATIAL_PATCH or size % SPATIAL_PATCH:
            raise ValueError(f"latent {name} must be a positive multiple of {SPATIAL_PATCH}, got {size}")
    return (height // SPATIAL_PATCH) * (width // SPATIAL_PATCH)


def chunk_count(num_latent_frames: int, chunk_frames: int) -> int:
    """Chunks that `num_latent_frames` sampled latent frames need; a started chunk counts."""
    _check_chunk_frames(chunk_frames)
    if num_latent_frames < 0:
        raise ValueError(f"num_latent_frames must not be negative, got {num_latent_frames}")
    return -(-num_latent_frames // chunk_frames)


def given_spans(given_frames: int, chunk_frames: int) -> list[Span]:
    """Spans in which given latents are committed: whole chunks, or a single frame and then whole chunks.

    Raises ValueError unless given_frames % chunk_frames is 0, or 1 (an encoded image is one latent frame).
    """
    _check_chunk_frames(chunk_frames)
    rest = given_frames % chunk_frames
    if given_frames < 0 or rest > 1:
        raise ValueError(
            f"{given_frames} given latent frames do not divide into chunks of {chunk_frames}: "
            f"give a multiple of {chunk_frames}, or one more than that when the first is an image"
        )
    head = [Span(0, rest)] if rest else []
    return head + [Span(start, chunk_frames) for start in range(rest, given_frames, chunk_frames)]


def chunk_spans(num_latent_frames: int, chunk_frames: int, given_frames: int = 0) -> list[Span]:
    """All spans of a video: those of the given latents first, then the sampled chunks.

    `num_latent_frames` counts the given ones. The last sampled span has full length even where it runs past
    num_latent_frames: a chunk is always sampled whole, and the result trimmed. Starts are relative to the first
    frame of this call; a continuation adds its own offset.
    """
    spans = given_spans(given_frames, chunk_frames)
    if num_latent_frames < max(1, given_frames):
        raise ValueError(
            f"num_latent_frames is {num_latent_frames}; it must be at least 1, "
            f"and the {given_frames} given latent frames count too"
        )
    return spans + [Span(start, chunk_frames) for start in range(given_frames, num_latent_frames, chunk_frames)]


def _check_chunk_frames(chunk_frames: int) -> None:
    if chunk_frames < 1:
        raise ValueError(f"a chunk has at least 1 latent frame, got chunk_frames={chunk_frames}")


def _check_fps(fps: float) -> None:
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be finite and above 0, got {fps}")
