"""Settings of the bidirectional teacher, and its two sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from diag_core import WanConfig

from ..checks import require, require_above_zero, require_at_least
from .loop import LoopRecipe


@dataclass(frozen=True, kw_only=True)
class FlowMatchingRecipe(LoopRecipe):
    """Flow matching of a bidirectional DiT on first latent frames, on videos, and on a few latent frames of them.

    First frames teach what a digit looks like and, as cheaply, which words belong to which digit: a digit begins at the
    edge that it moves away from, so that even its direction is in the picture."""

    ends_anywhere: ClassVar[bool] = False
    model: WanConfig = field(
        default_factory=lambda: WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=6, text_len=32)
    )
    seed: int = 0
    """of the weights, where nothing is gone on from, of the order of the data, and of all noise"""
    steps: int = 3000
    """on first frames, on videos, and on a few latent frames of them"""
    image_every: int = 8
    """of so many steps the last is on first frames; 1 trains on those alone"""
    image_batch: int = 256
    """first frames a step"""
    video_batch: int = 12
    """whole videos a step"""
    sparse_of: tuple[int, int] = (0, 1)
    """(2, 3): two of three steps, where they are not on first frames, show only each `sparse_stride`-th latent frame,
    from the first on: cheap steps that teach where things go"""
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
    sample_every: int = 500
    """steps between samples of the averaged weights, which are judged; 0 makes none"""
    sample_prompts: int = 8
    """held-out prompts that are sampled then"""
    precision: str = "auto"
    """of activations: bf16, fp32, or auto: bf16 where the device is quick in it; weights and averages are float32"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "image_batch", "video_batch", "sparse_batch", "image_every", "sparse_stride")
        for name in ("prompt_dropout", "cooldown", "ema"):
            require(0 <= getattr(self, name) <= 1, name, "must be from 0 to 1", getattr(self, name))
        require_above_zero(self, "learning_rate", "clip", "shift", "spread")
        fits = 0 <= self.sparse_of[0] <= self.sparse_of[1] > 0
        require(fits, "sparse_of", "must be so many of so many, such as (2, 3)", self.sparse_of)

    @property
    def on_images_alone(self) -> bool:
        """Whether no step trains on videos."""
        return self.image_every == 1

    def on_images(self, step: int) -> bool:
        """Whether step `step` trains on first frames."""
        return step % self.image_every == self.image_every - 1

    def on_sparse(self, step: int) -> bool:
        """Whether step `step` trains on videos of which some latent frames are left out."""
        return not self.on_images(step) and step % self.sparse_of[1] < self.sparse_of[0]
