"""Which settings a video is sampled with: the model's own, a preset's, or the widgets'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..diag_core import DiagonalSchedule
from ..diag_core.settings import PRESETS, CheckpointSettings

FROM_MODEL, CUSTOM = "from model", "custom"
PRESET_NAMES = (FROM_MODEL, CUSTOM, *PRESETS)
DEFAULT_SCHEDULE = PRESETS["diagdistill"].schedule


@dataclass(frozen=True)
class SamplingChoice:
    """A sampler node's widgets, not yet weighed against what the model says of itself.

    Attributes:
        preset: one of `PRESET_NAMES`. "from model" takes the checkpoint's own settings, or `values` where it has none.
        schedule: a connected schedule; goes before any other, with its shift.
        schedule_text: goes before the preset's schedule unless it is blank. "custom" has none but the checkpoint's own.
        values: fields of `CheckpointSettings` that have widgets; they count with "custom".
    """

    preset: str
    schedule: DiagonalSchedule | None
    schedule_text: str
    values: Mapping[str, Any]

    def guesses(self, own: CheckpointSettings | None) -> bool:
        """Whether the settings were to be the MODEL's, which has none."""
        return self.preset == FROM_MODEL and own is None

    def resolve(self, own: CheckpointSettings | None) -> CheckpointSettings:
        """The settings to sample with; `own` are those of the MODEL.

        Raises:
            ValueError: values that cannot be; names the field.
        """
        text = self.schedule_text.strip()
        if self.preset in PRESETS:
            kept = {} if own is None else {"text_encoder": own.text_encoder, "title": own.title}
            settings = replace(PRESETS[self.preset], **kept)
        elif own is None:
            settings = CheckpointSettings(schedule=text or DEFAULT_SCHEDULE, **self.values)
        elif self.preset == CUSTOM:
            settings = replace(own, **self.values)  # what has no widget stays the checkpoint's
        else:
            settings = own
        if self.schedule is not None:
            return replace(settings, schedule=self.schedule.text(), shift=self.schedule.shift)
        return replace(settings, schedule=text) if text else settings


def widget_values(settings: CheckpointSettings) -> dict[str, Any]:
    """The settings as a sampler node's widgets have them."""
    return {
        "shift": settings.shift,
        "kv_noise": settings.kv_noise,
        "reuse_last_step": settings.reuse_last_step,
        "window": settings.window_frames or 0,
        "sink": settings.sink_frames,
        "positions": settings.positions,
        "chunk_frames": settings.chunk_frames,
        "step": settings.step,
        "cfg": settings.cfg,
    }


UNKNOWN = "this model says nothing of its settings, these are the node's: choose the preset it was made for"


def describe(settings: CheckpointSettings, chunks: int) -> str:
    """The settings in a line or two, as the node shows them after a run."""
    schedule = settings.diagonal_schedule()
    shown = min(chunks, 12)
    steps = " ".join(str(schedule.steps(chunk)) for chunk in range(shown)) + (" .." if chunks > shown else "")
    parts = [f"steps {steps} ({schedule.forwards(chunks)} forwards)", f"shift {settings.shift:g}"]
    if settings.causal:
        policy, last = settings.policy(), schedule.sigmas(0)[-1]
        how = "last step reused" if policy.reuses(last) else "one forward a chunk"
        window = "everything" if settings.window_frames is None else f"{settings.window_frames} latent frames"
        parts += [
            f"KV noise {settings.kv_noise:g} (true timestep {1000 * policy.level(last):.1f}, {how})",
            f"window {window}, sink {settings.sink_frames}",
        ]
    parts += [f"{settings.step} steps", f"CFG {settings.cfg:g}"]
    return " \u00b7 ".join(parts)
