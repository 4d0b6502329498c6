"""Settings of the bidirectional teacher, and its two sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from diag_core import WanConfig


@dataclass(frozen=True, kw_only=True)
class FlowMatchingRecipe:
    """Flow matching of a bidirectional DiT on first latent frames, on videos, and on a few latent frames of them.

    First frames teach what a digit looks like and, as cheaply, which words belong to which digit: a digit begins at the
    edge that it moves away from, so that even its direction is in the picture."""

    model: WanConfig = field(
        default_factory=lambda: WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=6, text_len=32)
    )
    seed: int = 0
    """of the weights, where nothing is gone on from, of the order of the data, and of all noise"""
    image_steps: int = 1400
    """steps on first frames before the first video"""
    video_steps: int = 1500
    """steps that follow, of which every `image_every`-th is on first frames again"""
    image_every: int = 8
    image_batch: int = 256
    """first frames a step"""
    video_batch: int = 12
    """whole videos a step"""
    sparse_of: tuple[int, int] = (0, 1)
    """of so many video steps, so many show only each `sparse_stride`-th latent frame, from the first on: cheap steps
    that teach where things go"""
    sparse_stride: int = 3
    """1 would be all of them"""
    sparse_batch: int = 16
    """videos a step of these"""
    learning_rate: float = 8e-4
    """the highest, between warm-up and cooldown"""
    warmup_steps: int = 100
    """over which the learning rate rises from zero"""
    cooldown: float = 0.35
    """share of all steps over which the learning rate falls linearly to zero"""
    weight_decay: float = 0.01
    clip: float = 1.0
    """largest gradient norm"""
    prompt_dropout: float = 0.1
    """share of samples trained without their prompt, for classifier-free guidance"""
    shift: float = 2.7
    """of the noise levels that single frames are trained at. That of F frames is sqrt(F) times as high, for together
    they show through so much more noise (as a larger image does, arXiv 2403.03206): motion is decided in levels of 0.9
    and more of a whole video, and in lower ones of a few frames of it"""
    spread: float = 1.6
    """standard deviation of the noise levels' logits, before the shift"""
    ema: float = 0.998
    """decay a step of the averaged weights, which are the result"""
    compiled: bool = False
    """fuse small operations with torch.compile, which needs a C++ compiler: a quarter faster on a CPU, and other last
    bits"""
    save_every: int = 100
    """steps between saved states: what a kill can cost"""
    log_every: int = 20
    """steps between the lines of the log"""

    def __post_init__(self) -> None:
        batches = ("image_batch", "video_batch", "sparse_batch")
        for name in (*batches, "image_every", "sparse_stride", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"recipe: {name} must be at least 1, got {getattr(self, name)}")
        shares = ("prompt_dropout", "cooldown", "ema")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"recipe: {name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "shift", "spread"):
            if not getattr(self, name) > 0:
                raise ValueError(f"recipe: {name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.sparse_of[0] <= self.sparse_of[1] > 0:
            raise ValueError(f"recipe: sparse_of must be so many of so many, such as (2, 3), got {self.sparse_of}")
        if min(self.image_steps, self.video_steps) < 0 or self.steps < 1:
            raise ValueError(
                f"recipe: image_steps and video_steps must not be negative nor both 0, got {self.image_steps} and "
                f"{self.video_steps}"
            )

    @property
    def steps(self) -> int:
        return self.image_steps + self.video_steps

    def on_images(self, step: int) -> bool:
        """Whether step `step` trains on first frames."""
        return step < self.image_steps or (step - self.image_steps) % self.image_every == self.image_every - 1

    def on_sparse(self, step: int) -> bool:
        """Whether step `step` trains on videos of which some latent frames are left out."""
        return not self.on_images(step) and step % self.sparse_of[1] < self.sparse_of[0]
