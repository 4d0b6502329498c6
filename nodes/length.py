"""How long a video is, in the units a user thinks in."""

from __future__ import annotations

import math

from ..diag_core.geometry import latent_frames, latent_frames_for

UNITS = ("seconds", "pixel frames", "latent frames", "chunks")
MAX_LATENT_FRAMES = 100_000


def latent_length(length: float, unit: str, fps: float, chunk_frames: int, *, more: bool = False) -> int:
    """Latent frames of a video of `length`.

    Args:
        more: they are added to a video: pixel frames and seconds are then four pixel frames a latent frame, without the
            single one that a video begins with.

    Raises:
        ValueError: no length, a part of a frame or chunk, or an absurd one.
    """
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"length must be above 0 {unit}, got {length:g}")
    if unit not in UNITS:
        raise ValueError(f"unit: there is no '{unit}'; choose one of {', '.join(UNITS)}")
    if unit != "seconds" and length != int(length):
        raise ValueError(f"length: {length:g} {unit} is no whole number; only seconds may have a part")
    if unit == "chunks":
        frames = int(length) * chunk_frames
    elif unit == "latent frames":
        frames = int(length)
    elif more:
        pixels = length * fps if unit == "seconds" else length
        frames = max(1, math.ceil(round(pixels, 6) / 4))
    else:
        frames = latent_frames_for(length, fps) if unit == "seconds" else latent_frames(int(length))
    if frames > MAX_LATENT_FRAMES:
        raise ValueError(f"length: {length:g} {unit} are {frames} latent frames; {MAX_LATENT_FRAMES} at most")
    return frames
