"""Inputs that the sampling nodes have in common, and what is said of them before anything runs."""

from __future__ import annotations

import uuid
from typing import Any

from comfy_api.latest import io

from ..diag_core import DiagonalSchedule
from ..diag_core.denoising import STEPS
from ..diag_core.diagonal_schedule import DEFAULT_SHIFT
from .choice import CUSTOM, FROM_MODEL, PRESET_NAMES, SamplingChoice
from .custom_types import SCHEDULE

_ONLY_CUSTOM = " Counts with the preset 'custom', or with 'from model' when the model brings none."


def preset_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "preset",
            options=list(PRESET_NAMES),
            default=FROM_MODEL,
            tooltip="Where the settings below come from. 'from model': what the checkpoint itself says; if it says "
            "nothing, the values below. 'custom': the values below. A name: the values of that family of checkpoints.",
        ),
        io.String.Input(
            "schedule_text",
            default="",
            tooltip="Steps of each chunk, such as 4322222, '4 3 2*5' or '1000,750,100 | 1000,100'. Empty: the "
            "preset's; with 'custom', the checkpoint's own, or 4322222. A connected schedule goes first. More steps: "
            "cleaner and slower. Mind that 12 means 1 step, then 2.",
        ),
    ]


def seed_input() -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The same seed and settings give the same video; a longer video begins like a shorter one.",
    )


def guidance_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance. Distilled models want 1, which needs no negative and is twice as fast." + _ONLY_CUSTOM,
        ),
        io.Conditioning.Input("negative", optional=True, tooltip="What to avoid. Needed only where cfg is not 1."),
        schedule_input(),
    ]


def schedule_input() -> Any:
    return SCHEDULE.Input(
        "schedule", optional=True, tooltip="From Diagonal Schedule. Goes before schedule_text and brings its own shift."
    )


def settings_inputs() -> list[Any]:
    """The widgets of `CheckpointSettings`, in the order that saved workflows rely on."""
    return [
        io.Float.Input(
            "shift",
            default=5.0,
            min=0.1,
            max=100.0,
            step=0.1,
            tooltip="How far the steps are moved towards high noise: true noise = shift s / (1 + (shift - 1) s). "
            "Distilled models want the value they were trained with (5)." + _ONLY_CUSTOM,
        ),
        io.Float.Input(
            "kv_noise",
            default=100.0,
            min=0.0,
            max=1000.0,
            step=1.0,
            tooltip="Noise level (0 to 1000, before the shift) at which later chunks see the finished ones. 0 is "
            "clean: Self-Forcing and LongLive. 100: DiagDistill. Higher hides more of the past." + _ONLY_CUSTOM,
        ),
        io.Boolean.Input(
            "reuse_last_step",
            default=True,
            tooltip="A finished chunk takes one more forward, which stores it for later chunks. If its last step ran "
            "at the KV noise already, keep what that one stored, and save the forward." + _ONLY_CUSTOM,
        ),
        io.Int.Input(
            "window",
            default=12,
            min=0,
            max=4096,
            tooltip="Latent frames that a chunk looks at in all: sink, recent ones and itself. Larger remembers more "
            "and takes more memory and time. 0: everything since the start." + _ONLY_CUSTOM,
        ),
        io.Int.Input(
            "sink",
            default=3,
            min=0,
            max=1024,
            tooltip="First latent frames of the video that are never forgotten. They hold a long video together."
            + _ONLY_CUSTOM,
        ),
        io.Combo.Input(
            "positions",
            options=["absolute", "relative"],
            default="absolute",
            tooltip="'relative' keeps the sink just before the window, so that videos longer than those the model was "
            "trained on (5 seconds, mostly) keep to the distances it knows." + _ONLY_CUSTOM,
        ),
        io.Int.Input(
            "chunk_frames",
            default=3,
            min=1,
            max=64,
            tooltip="Latent frames sampled together (3 are 12 pictures). What the model was trained with."
            + _ONLY_CUSTOM,
        ),
        io.Combo.Input(
            "step",
            options=list(STEPS),
            default="renoise",
            tooltip="'renoise' for distilled models; 'euler' for undistilled ones, with many steps and guidance."
            + _ONLY_CUSTOM,
        ),
    ]


def clip_input() -> Any:
    """What a node needs that takes prompts while it samples."""
    return io.Clip.Input(
        "clip",
        optional=True,
        tooltip="Connect the text encoder to change the prompt while the video is being sampled: type into the live "
        "prompt on the node. The next chunk takes it.",
    )


class TakesPrompts:
    """What a node is that may have a `clip_input`."""

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """ComfyUI runs a node again where this differs from the last run's, or its other inputs do.

        The inputs do not tell what was typed while a video was sampled: with a CLIP, no run is like another. ComfyUI
        hands over None for what is connected, and leaves out what is not.
        """
        return uuid.uuid4().hex if "clip" in inputs else ""


def choice_of(
    preset: str, schedule_text: str, schedule: DiagonalSchedule | None, values: dict[str, Any]
) -> SamplingChoice:
    values = dict(values)
    window, sink = values.pop("window"), values.pop("sink")
    values |= {"window_frames": window or None, "sink_frames": sink if window else 0}
    return SamplingChoice(preset, schedule, schedule_text, values)


class Checked:
    """What can be said of the settings' widgets before anything runs."""

    @classmethod
    def validate_inputs(
        cls,
        preset: str | None = None,
        schedule_text: str | None = None,
        shift: float | None = None,
        kv_noise: float | None = None,
        reuse_last_step: bool | None = None,
        window: int | None = None,
        sink: int | None = None,
        positions: str | None = None,
        chunk_frames: int | None = None,
        step: str | None = None,
        cfg: float | None = None,
    ) -> bool | str:
        """True, or what is wrong. What another node brings is None, and so is what a node does not have."""
        if preset is not None and preset not in PRESET_NAMES:
            return f"preset: there is no '{preset}'; choose one of {', '.join(PRESET_NAMES)}"
        values = {
            "shift": shift, "kv_noise": kv_noise, "reuse_last_step": reuse_last_step, "window": window, "sink": sink,
            "positions": positions, "chunk_frames": chunk_frames, "step": step,
        }  # fmt: skip
        try:
            if schedule_text and schedule_text.strip():
                DiagonalSchedule.parse(schedule_text, DEFAULT_SHIFT if shift is None else shift)
            if preset == CUSTOM and None not in values.values():
                guided = {} if cfg is None else {"cfg": cfg}
                choice_of(preset, "", None, values | guided).resolve(None)
        except ValueError as error:
            return str(error)
        return True
