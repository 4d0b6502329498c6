"""Settings of the distillation: ODE pairs, ODE initialisation, and the two stages of distribution matching.

Defaults are the published ones where they do not depend on the model's size. Steps and KV noise are schedule timesteps
(0..1000, before the shift); lengths are latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from diag_core import CacheConfig, DiagonalSchedule
from diag_core.checkpoint import CheckpointSettings
from diag_core.config import DEFAULT_KV_NOISE

from ..checks import require, require_at_least
from ..distribution_matching import NoiseLaw
from ..losses import LossWeights
from ..precision import PRECISIONS
from .loop import LoopRecipe


@dataclass(frozen=True, kw_only=True)
class OdePairsRecipe:
    """Trajectories of the teacher, from which the student learns to jump to the end."""

    seed: int = 0
    """of prompts and noise"""
    shards: int = 16
    """files, each whole or absent"""
    pairs_a_shard: int = 64
    """trajectories of each file"""
    batch: int = 16
    """videos at a time"""
    steps: int = 50
    """Euler steps of a trajectory, uniform before the shift"""
    shift: float = 5.0
    """of those steps"""
    cfg: float = 6.0
    """guidance; 1 is none"""
    negative_prompt: str = ""
    """what guidance leads away from"""
    points: tuple[float, ...] = (1000.0, 750.0, 500.0, 100.0)
    """schedule timesteps that are stored, each as the trajectory's nearest step, beside the clean end"""
    precision: str = "bf16"
    """of activations: bf16, fp32, or auto: bf16 where the device is quick in it"""
    compiled: bool = False
    """fuse small operations with torch.compile, which needs a C++ compiler: faster, and other last bits"""

    def __post_init__(self) -> None:
        for name in ("shards", "pairs_a_shard", "batch"):
            require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        require(self.seed >= 0, "seed", "must be 0 or more", self.seed)
        require(self.steps >= 2, "steps", "must be at least 2", self.steps)
        require(self.shift > 0, "shift", "must be above 0", self.shift)
        require(self.cfg >= 1, "cfg", "must be at least 1", self.cfg)
        require(self.precision in PRECISIONS, "precision", f"must be one of {', '.join(PRECISIONS)}", self.precision)
        DiagonalSchedule.from_steps([self.points], shift=self.shift)
        indices = self.point_indices
        require(len(set(indices)) == len(indices), "points", f"fall on one of {self.steps} steps twice", self.points)

    @property
    def levels(self) -> tuple[float, ...]:
        """Sigmas of the trajectory, descending, without the final 0."""
        uniform = [1000 * (1 - i / self.steps) for i in range(self.steps)]
        return DiagonalSchedule.from_steps([uniform], shift=self.shift).sigmas(0)

    @property
    def point_indices(self) -> tuple[int, ...]:
        """Steps of the trajectory at which a point is stored."""
        return tuple(min(range(self.steps), key=lambda i: abs(1000 * (1 - i / self.steps) - t)) for t in self.points)


@dataclass(frozen=True, kw_only=True)
class OdeInitRecipe(LoopRecipe):
    """The causal student learns to jump from any stored point of a trajectory to its end."""

    steps: int = 3000
    """iterations"""
    batch: int = 16
    """videos of an update, of all processes together"""
    micro_batch: int = 0
    """videos of a forward on one process, whose gradients add up to the batch's; 0 takes its share at once"""
    learning_rate: float = 2e-6
    """after the warm-up"""
    warmup_steps: int = 20
    """iterations over which the learning rate rises from 0"""
    weight_decay: float = 0.01
    """of AdamW"""
    clip: float = 10.0
    """largest gradient norm"""
    ema: float = 0.99
    """decay of the averaged weights, which it approaches as (1 + n) / (10 + n)"""
    checkpointing: bool = False
    """keep fewer activations and compute them again: less memory, a third more time"""
    compiled: bool = False
    """fuse small operations with torch.compile, which needs a C++ compiler: faster, and other last bits"""
    window_frames: int = 12
    """latent frames attended in all"""
    sink_frames: int = 3
    """of which the first ones that always stay"""
    chunk_frames: int = 3
    """latent frames denoised together"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_optimizer(self, ("learning_rate",))
        CacheConfig(self.window_frames, self.sink_frames)


@dataclass(frozen=True, kw_only=True)
class DistilRecipe(LoopRecipe):
    """Distribution matching of the student's own rollouts; stage 1 and stage 2 differ in schedule and weights only."""

    schedule: str = "4322222"
    """step lists of the chunks (`DiagonalSchedule.parse`)"""
    shift: float = 5.0
    """of the step lists and the KV noise"""
    kv_noise: float = DEFAULT_KV_NOISE
    """level at which finished chunks are committed; 0 is clean"""
    reuse_last_step: bool = True
    """whether a last step at that level is the commit"""
    window_frames: int = 12
    """latent frames attended in all"""
    sink_frames: int = 3
    """of which the first ones that always stay"""
    chunk_frames: int = 3
    """latent frames denoised together"""
    steps: int = 2000
    """critic updates"""
    generator_every: int = 5
    """iterations from one generator update to the next"""
    batch: int = 64
    """videos of an update, of all processes together; of the generator and of the critic alike"""
    micro_batch: int = 0
    """videos of a forward on one process, whose gradients add up to the batch's; 0 takes its share at once"""
    cfg: float = 4.0
    """guidance of the real score; 1 is none"""
    negative_prompt: str = ""
    """what that guidance leads away from: the prompt the teacher learnt as none"""
    noise: NoiseLaw = field(default_factory=NoiseLaw)
    """levels at which the scores compare"""
    weights: LossWeights = field(default_factory=LossWeights)
    """of the generator's losses"""
    regression_schedule: str = "4"
    """step lists with which the frozen student is sampled that regression terms compare with; empty for its own. All
    else is as its file says"""
    learning_rate: float = 2e-6
    """of the generator"""
    critic_learning_rate: float = 4e-7
    """of the critic"""
    warmup_steps: int = 0
    """updates over which either learning rate rises from 0"""
    betas: tuple[float, float] = (0.0, 0.999)
    """of both AdamW optimizers"""
    weight_decay: float = 0.01
    """of AdamW"""
    clip: float = 10.0
    """largest gradient norm, of both"""
    ema: float = 0.99
    """decay of the generator's averaged weights"""
    ema_start: int = 0
    """generator updates during which the average is a copy of the weights; 0 lets the decay rise instead, as
    (1 + n) / (10 + n) over n updates"""
    checkpointing: bool = False
    """keep fewer activations and compute them again: less memory, a third more time"""
    compiled: bool = False
    """fuse small operations with torch.compile in the forwards over whole videos, which needs a
    C++ compiler: faster, and other last bits"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("generator_every", "batch", "chunk_frames"):
            require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        require_at_least(self, 0, "ema_start")
        check_optimizer(self, ("learning_rate", "critic_learning_rate"))
        require(self.cfg >= 1, "cfg", "must be at least 1", self.cfg)
        require(all(0 <= b < 1 for b in self.betas), "betas", "must be 0 or more and below 1", self.betas)
        if self.regression_schedule:
            DiagonalSchedule.parse(self.regression_schedule)
        self.settings()

    def settings(self, *, title: str = "", license: str = "", text_encoder: str = "umt5") -> CheckpointSettings:
        """How the student is sampled, in training and from its checkpoint."""
        return CheckpointSettings(
            schedule=self.schedule,
            shift=self.shift,
            kv_noise=self.kv_noise,
            reuse_last_step=self.reuse_last_step,
            window_frames=self.window_frames,
            sink_frames=self.sink_frames,
            chunk_frames=self.chunk_frames,
            text_encoder=text_encoder,
            title=title,
            license=license,
        )

    def regression_settings(self, own: CheckpointSettings) -> CheckpointSettings:
        """How the frozen student is sampled, whose file says `own`."""
        return replace(own, schedule=self.regression_schedule or own.schedule)


def check_optimizer(recipe: OdeInitRecipe | DistilRecipe, rates: tuple[str, ...]) -> None:
    """ValueError for fields that no optimizer could use."""
    for name in (*rates, "clip"):
        require(getattr(recipe, name) > 0, name, "must be above 0", getattr(recipe, name))
    for name in ("warmup_steps", "weight_decay", "micro_batch"):
        require(getattr(recipe, name) >= 0, name, "must be 0 or more", getattr(recipe, name))
    require(0 <= recipe.ema < 1, "ema", "must be 0 or more and below 1", recipe.ema)
    require(recipe.batch >= 1, "batch", "must be at least 1", recipe.batch)
