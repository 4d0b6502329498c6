"""How a video is sampled, and who said so: the checkpoint, then a preset, then the options given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..settings import PRESETS, CheckpointSettings

OPTIONS = {
    "schedule": "--schedule",
    "shift": "--shift",
    "kv_noise": "--kv-noise",
    "reuse_last_step": "--reuse-last-step",
    "window_frames": "--window",
    "sink_frames": "--sink",
    "positions": "--positions",
    "chunk_frames": "--chunk-frames",
    "step": "--step",
    "cfg": "--cfg",
    "negative_prompt": "--negative",
}
"""Field of `CheckpointSettings` -> the option that sets it."""
CHUNKWISE = ("kv_noise", "reuse_last_step", "window_frames", "sink_frames", "positions", "chunk_frames")
"""Fields without meaning for a model that makes the whole video at once."""
_OF_THE_MODEL = ("text_encoder", "title", "license")  # facts that no preset changes


@dataclass(frozen=True)
class Resolved:
    settings: CheckpointSettings
    sources: Mapping[str, str]
    """Field -> "checkpoint", "preset NAME", the option's name, or "default"."""


def resolve(
    stored: CheckpointSettings | None,
    preset: str | None,
    given: Mapping[str, Any],
    *,
    name: str = "the checkpoint",
    stored_by: str = "checkpoint",
) -> Resolved:
    """Settings from the checkpoint (or a saved video), a preset and the options given; the last that speaks counts.

    Args:
        stored: None when the file says nothing.
        given: field -> value, of the options given.
        name: of the checkpoint, for the error.
        stored_by: what `sources` calls the origin of `stored`.

    Raises:
        ValueError: no schedule from anywhere, an unknown preset, or a value that cannot be (its option is named).
    """
    base, source = stored, stored_by
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"--preset: there is no preset {preset!r}; there are {', '.join(PRESETS)}")
        kept = {} if stored is None else {field: getattr(stored, field) for field in _OF_THE_MODEL}
        base, source = dataclasses.replace(PRESETS[preset], **kept), f"preset {preset}"
    if base is None and "schedule" not in given:
        raise ValueError(
            f"{name} does not say how it is sampled: choose with --preset ({', '.join(PRESETS)}), or give --schedule"
        )
    try:
        settings = CheckpointSettings(**given) if base is None else dataclasses.replace(base, **given)
    except ValueError as error:
        raise ValueError(_named_by_option(str(error), given)) from error
    origin = "default" if base is None else source
    fields = [field.name for field in dataclasses.fields(CheckpointSettings)]
    return Resolved(settings, {field: OPTIONS[field] if field in given else origin for field in fields})


def _named_by_option(message: str, given: Mapping[str, Any]) -> str:
    """The settings' own message, which begins with the field, told by the option the user gave."""
    field, colon, reason = message.removeprefix("checkpoint settings, ").partition(": ")
    if not colon or field not in OPTIONS:
        return message
    named = OPTIONS[field] if field in given else ", ".join(OPTIONS[name] for name in given)
    return f"{named}: {reason}"
