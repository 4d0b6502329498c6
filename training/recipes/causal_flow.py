"""Settings of the causal flow-matching stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from diag_core import CacheConfig, WanConfig


@dataclass(frozen=True, kw_only=True)
class CausalFlowRecipe:
    """Flow matching of a causal DiT: single latent frames first, which teach what a digit looks like, then videos."""

    model: WanConfig = field(
        default_factory=lambda: WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=6, text_len=32)
    )
    cache: CacheConfig = field(default_factory=CacheConfig)
    chunk_frames: int = 3
    seed: int = 0
    image_steps: int = 1400
    """steps on single first frames before the first video"""
    video_steps: int = 1100
    """steps that follow, of which every `image_every`-th is on single frames again"""
    image_every: int = 4
    image_batch: int = 256
    video_batch: int = 32
    learning_rate: float = 8e-4
    warmup_steps: int = 100
    cooldown: float = 0.3
    """share of all steps over which the learning rate falls linearly to zero"""
    weight_decay: float = 0.01
    clip: float = 1.0
    """largest gradient norm"""
    prompt_dropout: float = 0.1
    """share of samples trained without their prompt, for classifier-free guidance"""
    shift: float = 3.0
    """of the noise levels trained on"""
    max_context_sigma: float = 0.4
    """finished chunks are shown at one noise level a video, from 0 to this"""
    ema: float = 0.999
    save_every: int = 200
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "image_every", "image_batch", "video_batch", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("prompt_dropout", "max_context_sigma", "cooldown", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"recipe: {name} must be from 0 to 1, got {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError("recipe: image_steps and video_steps are both 0")

    @property
    def steps(self) -> int:
        return self.image_steps + self.video_steps

    def on_images(self, step: int) -> bool:
        """Whether step `step` trains on single frames."""
        return step < self.image_steps or (step - self.image_steps) % self.image_every == self.image_every - 1
