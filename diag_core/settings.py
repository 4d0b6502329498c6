"""How a checkpoint wants to be sampled: the settings that travel in its metadata, and those of published models.

Units as users edit them: schedule timesteps (0..1000, before the shift) and latent frames.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .config import CacheConfig, ContextPolicy
from .demo_text import DEMO_ENCODER
from .denoising import STEPS
from .diagonal_schedule import DiagonalSchedule

TEXT_ENCODERS = ("umt5", DEMO_ENCODER)

# Wan's standard negative prompt, as its public configs have it: undistilled models were tuned with these very words.
WAN_NEGATIVE_PROMPT = (
    "色调艳丽 过曝 静态 细节模糊不清 字幕 风格 作品 画作 画面 静止 整体发灰 最差质量 低质量 "
    "JPEG压缩残留 丑陋的 残缺的 多余的手指 画得不好的手部 画得不好的脸部 畸形的 毁容的 "
    "形态畸形的肢体 手指融合 静止不动的画面 杂乱的背景 三条腿 背景人很多 倒着走"
).replace(" ", "\uff0c")  # parted by full-width commas


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Sampling defaults of one checkpoint. Every field is checked; a wrong one raises ValueError and is named."""

    schedule: str
    """Text form of the diagonal schedule (`DiagonalSchedule.parse`)."""
    shift: float = 5.0
    """Of the noise schedule: sigma = shift t / (1 + (shift - 1) t), t the schedule timestep over 1000."""
    kv_noise: float = 100.0
    """Level at which finished chunks are committed, as a schedule timestep: 0 is clean."""
    reuse_last_step: bool = True
    """Whether a last step at that level is the commit (`ContextPolicy.kv_noise`)."""
    window_frames: int | None = 12
    """Latent frames attended in all; None is everything."""
    sink_frames: int = 3
    """The first latent frames of the video, which stay in the window when others leave."""
    positions: str = "absolute"
    """What RoPE counts: frames of the video, or places in the window (`CacheConfig.positions`)."""
    chunk_frames: int = 3
    """Latent frames denoised together."""
    causal: bool = True
    """False for a bidirectional model: the whole video is one chunk, and cache and commit do not matter."""
    step: str = "renoise"
    """How a step goes on from its estimate of the clean latents: "renoise" with fresh noise, or "euler"."""
    cfg: float = 1.0
    """Guidance by `negative_prompt`; 1 is none and costs one forward a step, everything else two."""
    negative_prompt: str = ""
    text_encoder: str = "umt5"
    """Whose embeddings the model knows: one of `TEXT_ENCODERS`."""
    title: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        for name in ("schedule", "positions", "step", "negative_prompt", "text_encoder", "title", "license"):
            self._require(name, isinstance(getattr(self, name), str), "must be text")
        for name in ("reuse_last_step", "causal"):
            self._require(name, isinstance(getattr(self, name), bool), "must be true or false")
        for name in ("shift", "kv_noise", "cfg"):
            self._require(name, _is_number(getattr(self, name)), "must be a finite number")
        for name in ("sink_frames", "chunk_frames"):
            self._require(name, _is_integer(getattr(self, name)), "must be a whole number of latent frames")
        window = self.window_frames
        self._require("window_frames", window is None or _is_integer(window), "must be a whole number or null")
        self._require("step", self.step in STEPS, f"must be one of {', '.join(STEPS)}")
        self._require("text_encoder", self.text_encoder in TEXT_ENCODERS, f"must be one of {', '.join(TEXT_ENCODERS)}")
        self._require("chunk_frames", self.chunk_frames >= 1, "must be 1 or more")
        self._require("cfg", self.cfg >= 0, "must be 0 or more")
        parts = {"schedule": self.diagonal_schedule, "kv_noise": self.policy, "window_frames": self.cache}
        for name, build in parts.items():
            try:
                build()
            except ValueError as error:
                raise ValueError(f"checkpoint settings, {name}: {error}") from error
        fits = window is None or not self.causal or window - self.sink_frames >= self.chunk_frames
        self._require("window_frames", fits, "must hold the sink and at least one chunk")

    def _require(self, name: str, right: bool, rule: str) -> None:
        if not right:
            raise ValueError(f"checkpoint settings, {name}: {rule}, got {getattr(self, name)!r}")

    def diagonal_schedule(self) -> DiagonalSchedule:
        return DiagonalSchedule.parse(self.schedule, self.shift)

    def policy(self) -> ContextPolicy:
        return ContextPolicy.kv_noise(self.kv_noise, self.shift, reuse_last_step=self.reuse_last_step)

    def cache(self) -> CacheConfig:
        return CacheConfig(self.window_frames, self.sink_frames, self.positions)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> CheckpointSettings:
        """Fields of a newer version that this one does not know are left out, with a warning.

        Raises:
            ValueError: not a JSON object, no schedule, or a field with a wrong value.
        """
        if not isinstance(values, dict):
            raise ValueError(f"checkpoint settings must be a JSON object, got {type(values).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            warnings.warn(
                f"checkpoint settings this version does not know were left out: {', '.join(unknown)}", stacklevel=2
            )
        if "schedule" not in values:
            raise ValueError("checkpoint settings, schedule: is missing")
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> CheckpointSettings:
        """Raises ValueError for anything that is not settings in JSON."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"checkpoint settings are no JSON: {error}") from error
        return cls.from_dict(values)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


PRESETS: dict[str, CheckpointSettings] = {
    # The paper's choice: diagonal lists, the last step's keys as the commit.
    "diagdistill": CheckpointSettings(schedule="4322222"),
    # Both sample 1000, 750, 500, 250 for every chunk and commit it clean; Self Forcing attends to everything.
    "self-forcing": CheckpointSettings(
        schedule="1000,750,500,250", kv_noise=0.0, reuse_last_step=False, window_frames=None, sink_frames=0
    ),
    "longlive": CheckpointSettings(schedule="1000,750,500,250", kv_noise=0.0, reuse_last_step=False),
    # Undistilled, bidirectional, 81 pixel frames. Shift and guidance are what Wan's authors advise for the 1.3B model.
    "wan": CheckpointSettings(
        schedule="50",
        shift=8.0,
        kv_noise=0.0,
        reuse_last_step=False,
        window_frames=None,
        sink_frames=0,
        chunk_frames=21,
        causal=False,
        step="euler",
        cfg=6.0,
        negative_prompt=WAN_NEGATIVE_PROMPT,
    ),
}

# The same for 14B, whose advised shift and guidance are the public script's own defaults.
PRESETS["wan-14b"] = replace(PRESETS["wan"], shift=5.0, cfg=5.0)

# Only names that nothing else goes by: a wrapper alone (`generator`) does not tell how a model was distilled.
_PUBLISHED: tuple[tuple[str, str], ...] = (
    (r"self_forcing_dmd\.(pt|safetensors)", "self-forcing"),
    (r"longlive_base\.(pt|safetensors)", "longlive"),
    (r"wan2\.1_t2v_1\.3B_\w+\.safetensors", "wan"),
    (r"wan2\.1_t2v_14B_\w+\.safetensors", "wan-14b"),
)


def published_settings(path: str | Path) -> CheckpointSettings | None:
    """Settings of a published checkpoint that carries none itself, by its file name; None where that is not certain."""
    name = Path(path).name
    return next((PRESETS[preset] for pattern, preset in _PUBLISHED if re.fullmatch(pattern, name, re.IGNORECASE)), None)
