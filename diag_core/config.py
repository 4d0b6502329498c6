"""Frozen descriptions of a model, of its key-value cache and of what later chunks see of earlier ones."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .noise_schedule import sigma_from_schedule_timestep

PATCH = (1, 2, 2)  # latent frames, rows and columns in one token: the same for every Wan 2.1 model
DEFAULT_KV_NOISE = 100.0  # schedule timestep; Figure 5a of the paper finds it best
HEAD_DIM = 128  # Wan's convention, by which ComfyUI derives the number of heads


@dataclass(frozen=True)
class WanConfig:
    """Sizes of a Wan 2.1 text-to-video DiT.

    Raises:
        ValueError: sizes that no such model can have.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "eps" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"WanConfig.{field.name} must be a positive integer, got {value!r}")
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(
                f"WanConfig: dim {self.dim} must split into {self.num_heads} heads of an even width of at least 6"
            )
        if self.freq_dim % 2:
            raise ValueError(f"WanConfig.freq_dim must be even, got {self.freq_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def wan_1_3b(cls) -> WanConfig:
        return cls(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)

    @classmethod
    def wan_14b(cls) -> WanConfig:
        return cls(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WanConfig:
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"WanConfig has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True)
class CacheConfig:
    """Which latent frames a chunk attends to.

    Attributes:
        window_frames: latent frames attended in all: the sink, the recent ones and the chunk itself.
            None attends to everything since the start.
        sink_frames: first latent frames of the video that always stay.
        positions: "absolute" latent-frame indices in RoPE, or "relative", where the sink moves along just before
            the window, so that a long video never leaves the distances known from training.
    """

    window_frames: int | None = 12
    sink_frames: int = 3
    positions: str = "absolute"

    def __post_init__(self) -> None:
        if self.positions not in ("absolute", "relative"):
            raise ValueError(f'CacheConfig.positions must be "absolute" or "relative", got {self.positions!r}')
        for name in ("window_frames", "sink_frames"):
            value = getattr(self, name)
            if not (value is None and name == "window_frames") and (
                isinstance(value, bool) or not isinstance(value, int)
            ):
                raise ValueError(f"CacheConfig.{name} must be a whole number of latent frames, got {value!r}")
        if self.sink_frames < 0:
            raise ValueError(f"CacheConfig.sink_frames must be 0 or more, got {self.sink_frames}")
        if self.window_frames is not None and self.window_frames <= self.sink_frames:
            raise ValueError(
                f"CacheConfig.window_frames ({self.window_frames}) counts the sink ({self.sink_frames}) and the "
                "current chunk: it must be larger than sink_frames, or None for everything"
            )

    def frames(self, total_frames: int) -> int:
        """Latent frames of storage for a video of `total_frames`."""
        return total_frames if self.window_frames is None else self.window_frames

    def bytes(
        self,
        config: WanConfig,
        *,
        tokens_per_frame: int,
        total_frames: int = 0,
        batch: int = 1,
        element_size: int = 2,
        branches: int = 1,
    ) -> int:
        """Storage of the self- and cross-attention keys and values, in bytes, before any is allocated.

        Prompts are taken to be `config.text_len` tokens long, as the encoders pad them.

        Args:
            tokens_per_frame: tokens of one latent frame (1560 at 832x480).
            total_frames: latent frames of the whole video; needed only when `window_frames` is None.
            element_size: bytes of one number (2 for bf16).
            branches: 2 with classifier-free guidance.
        """
        if self.window_frames is None and total_frames < 1:
            raise ValueError("CacheConfig.bytes: a cache without a window needs total_frames")
        own = 2 * self.frames(total_frames) * tokens_per_frame
        moves_sink = self.positions == "relative" and self.window_frames is not None
        unrotated_sink = self.sink_frames * tokens_per_frame if moves_sink else 0
        tokens = config.num_layers * (own + unrotated_sink + 2 * config.text_len) + config.text_len
        return branches * batch * config.dim * element_size * tokens


@dataclass(frozen=True)
class ContextPolicy:
    """What later chunks see of a finished one (METHOD: diagonal forcing, eq. 6 of the paper).

    Attributes:
        sigma: noise level of the committed output; None takes the level of the chunk's last denoising step.
        reuse_last_step: leave the keys and values of the last denoising step in place when that step was at
            `sigma` already. They come from the re-noised penultimate estimate and cost no forward.
    """

    sigma: float | None
    reuse_last_step: bool

    def __post_init__(self) -> None:
        number = isinstance(self.sigma, (int, float)) and not isinstance(self.sigma, bool)
        if self.sigma is not None and not (number and 0.0 <= self.sigma <= 1.0):
            raise ValueError(f"ContextPolicy: sigma must be a number from 0 to 1, got {self.sigma!r}")

    @classmethod
    def clean(cls) -> ContextPolicy:
        """Commit the finished chunk itself, at timestep 0 (Self Forcing, LongLive)."""
        return cls(sigma=0.0, reuse_last_step=False)

    @classmethod
    def noised(cls, sigma: float) -> ContextPolicy:
        """Commit the finished chunk re-noised to `sigma`, with one forward (the paper's training)."""
        return cls(sigma=sigma, reuse_last_step=False)

    @classmethod
    def last_step(cls) -> ContextPolicy:
        """Keep what the last denoising step wrote, whatever its level (the paper's inference)."""
        return cls(sigma=None, reuse_last_step=True)

    @classmethod
    def kv_noise(cls, timestep: float, shift: float = 5.0, *, reuse_last_step: bool = True) -> ContextPolicy:
        """From the KV-noise setting users edit: a schedule timestep, 0..1000 before the shift."""
        if not (math.isfinite(timestep) and 0.0 <= timestep <= 1000.0):
            raise ValueError(f"KV noise is a schedule timestep from 0 to 1000, got {timestep}")
        return cls(sigma=sigma_from_schedule_timestep(timestep, shift), reuse_last_step=reuse_last_step)

    def reuses(self, last_sigma: float) -> bool:
        """Whether a chunk whose last step was at `last_sigma` needs no commit forward."""
        return self.reuse_last_step and (self.sigma is None or math.isclose(self.sigma, last_sigma, abs_tol=1e-6))

    def level(self, last_sigma: float) -> float:
        """Noise level at which a chunk is committed when a forward is needed (also when it is committed anew)."""
        return last_sigma if self.sigma is None else self.sigma


@dataclass(frozen=True)
class SwitchPolicy:
    """What happens to the window's keys and values when the prompt changes (dynamic prompting, Fig. 9 of the paper).

    Attributes:
        recache: "chunks" commits the window's chunks anew one by one, oldest first; "joint" in one bidirectional
            forward (as LongLive does); "off" leaves them with the old prompt.
        sink: also recompute the sink's.
    """

    recache: str = "chunks"
    sink: bool = False

    def __post_init__(self) -> None:
        if self.recache not in ("chunks", "joint", "off"):
            raise ValueError(f'SwitchPolicy.recache must be "chunks", "joint" or "off", got {self.recache!r}')
