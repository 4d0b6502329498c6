"""How long a video is, in the units a user thinks in."""

from __future__ import annotations

import math

from ..diag_core.geometry import latent_frames, latent_frames_for, latent_size

UNITS = ("seconds", "pixel frames", "latent frames", "chunks")
MAX_LATENT_FRAMES = 100_000
MAX_SIZE = 8192  # pixels


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


def size_fault(width: int | None, height: int | None, length: float | None, unit: str | None) -> bool | str:
    """For `validate_inputs`: True, or what is wrong at any rate of pictures and any chunk size.

    What another node brings is None. ComfyUI leaves the limits of what `validate_inputs` takes to it.
    """
    try:
        if width is not None and height is not None:
            latent_size(height, width)
            if max(height, width) > MAX_SIZE:
                return f"width and height are {MAX_SIZE} pixels at most, got {width} x {height}"
        if length is not None and unit is not None:
            latent_length(length, unit, fps=1.0, chunk_frames=1)
    except ValueError as error:
        return str(error)
    return True
