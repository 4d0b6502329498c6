"""Distillation of Wan 2.1 at its own size, with the published settings.

Where projects differ or are silent, the field says what was chosen and why. Steps and KV noise are schedule timesteps
(0..1000, before the shift); lengths are latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from diag_core.attention import NAMES
from diag_core.geometry import latent_size
from diag_core.settings import WAN_NEGATIVE_PROMPT

from ..checks import require
from ..losses import LossWeights
from ..metrics import HealthLimits
from .distillation import DistilRecipe, OdeInitRecipe, OdePairsRecipe

LORA_TARGETS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
                "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2")  # fmt: skip
PRECISIONS = ("bf16", "fp32")
ATTENTION = tuple(name for name in NAMES if name != "sage")  # which has no gradients


@dataclass(frozen=True, kw_only=True)
class VideoSize:
    """Of the videos that the student samples while it is trained. No videos are read: training needs prompts alone."""

    width: int = 832
    """pixels, a multiple of 16"""
    height: int = 480
    """pixels, a multiple of 16"""
    latent_frames: int = 21
    """4 n - 3 pixel frames: 21 are 81, 5 seconds at 16 a second"""

    def __post_init__(self) -> None:
        latent_size(self.height, self.width)
        require(self.latent_frames >= 1, "video.latent_frames", "must be at least 1", self.latent_frames)

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """(C,F,H,W) of its latents."""
        return (channels, self.latent_frames, *latent_size(self.height, self.width))


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Training of low-rank additions to linear layers instead of all weights (peft)."""

    rank: int = 0
    """0 trains all weights; LongLive's published LoRA has 256"""
    alpha: float = 0.0
    """the addition is scaled by alpha / rank; 0 stands for the rank, which is a scale of 1"""
    targets: tuple[str, ...] = LORA_TARGETS
    """linear layers of every block that get one"""
    critic: bool = True
    """the critic is trained in the same way (LongLive does so), else in all its weights"""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "lora.rank", "must be 0 or more", self.rank)
        require(self.alpha >= 0, "lora.alpha", "must be 0 or more", self.alpha)
        require(len(self.targets) > 0, "lora.targets", "must name a layer", "none")
        for name in self.targets:
            require(name in LORA_TARGETS, "lora.targets", f"must be among {', '.join(LORA_TARGETS)}", name)

    @property
    def scaled_by(self) -> float:
        """alpha, where 0 stood for the rank."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True, kw_only=True)
class _AtWansSize:
    """What every stage has."""

    video: VideoSize = field(default_factory=VideoSize)
    attention: str = "auto"
    """its kernels, of `diag_core.attention`: auto is FlashAttention 3 where it is installed and fits the GPU, else
    PyTorch's own choice"""
    precision: str = "bf16"
    """of activations: bf16 or fp32"""

    def _check_size(self) -> None:
        require(self.attention in ATTENTION, "attention", f"must be one of {', '.join(ATTENTION)}", self.attention)
        # Not auto: the memory of a run is known before the device is.
        require(self.precision in PRECISIONS, "precision", f"must be one of {', '.join(PRECISIONS)}", self.precision)


@dataclass(frozen=True, kw_only=True)
class WanOdePairsRecipe(_AtWansSize, OdePairsRecipe):
    """Trajectories of the teacher.

    The shift is 5 as in Causal-Forcing (Self-Forcing has 8): stored points then lie at the levels of the student's
    step lists. 16,384 pairs are what Self-Forcing began with.
    """

    shards: int = 1024
    """files, each whole or absent"""
    pairs_a_shard: int = 16
    batch: int = 1
    """videos at a time; guidance doubles it"""
    negative_prompt: str = WAN_NEGATIVE_PROMPT
    """what guidance leads away from; it must be among the embeddings"""
    weights_precision: str = "bf16"
    """of the teacher's weights: bf16 or fp32"""
    sharded: bool = False
    """split the teacher over the GPUs (FSDP), for one that does not fit on each; all then go at the same pace"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_size()
        _check_precision(self.weights_precision, self.precision)


@dataclass(frozen=True, kw_only=True)
class WanOdeInitRecipe(_AtWansSize, OdeInitRecipe):
    """The causal student learns to jump from any stored point to the end; 3000 iterations, as in CausVid."""

    batch: int = 64
    """videos of an update, on all GPUs together"""
    micro_batch: int = 1
    checkpointing: bool = True
    sample_prompts: int = 4
    """prompts that are sampled then, those of the first trajectories"""
    limits: HealthLimits = field(default_factory=lambda: HealthLimits(patience=10))
    """where a run counts as collapsed and stops; the student has never seen a chunk before, so it is given time"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_size()
        _check_chunks(self.video, self.chunk_frames)


@dataclass(frozen=True, kw_only=True)
class WanDistilRecipe(_AtWansSize, DistilRecipe):
    """Distribution matching of the student's own rollouts, at Wan's size."""

    lora: LoraRecipe = field(default_factory=LoraRecipe)
    negative_prompt: str = WAN_NEGATIVE_PROMPT
    """what the real score's guidance leads away from; it must be among the embeddings"""
    regression_schedule: str = ""
    ema_start: int = 40
    """generator updates during which the average is a copy of the weights: 200 iterations, as published"""
    micro_batch: int = 1
    checkpointing: bool = True
    weights_precision: str = "bf16"
    """of the weights of frozen models (real score, regression teacher, and what a LoRA is added to): bf16 or fp32;
    trained weights are float32"""
    sample_prompts: int = 4
    """prompts that are sampled then, the first of the embeddings"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_size()
        _check_chunks(self.video, self.chunk_frames)
        _check_precision(self.weights_precision, self.precision)


def _check_precision(weights: str, forwards: str) -> None:
    require(weights in PRECISIONS, "weights_precision", f"must be one of {', '.join(PRECISIONS)}", weights)
    fits = weights == "fp32" or forwards == "bf16"
    require(fits, "weights_precision", "must be fp32 where precision is fp32", weights)


def _check_chunks(video: VideoSize, chunk_frames: int) -> None:
    right = chunk_frames >= 1 and video.latent_frames % chunk_frames == 0
    require(right, "video.latent_frames", f"must be a multiple of chunk_frames ({chunk_frames})", video.latent_frames)


WanRecipe = WanOdePairsRecipe | WanOdeInitRecipe | WanDistilRecipe


def ode_pairs() -> WanOdePairsRecipe:
    """Trajectories of the bidirectional teacher: 50 Euler steps, CFG 6."""
    return WanOdePairsRecipe()


def ode_init() -> WanOdeInitRecipe:
    """The causal student, begun as the bidirectional 1.3B model."""
    return WanOdeInitRecipe()


def stage1() -> WanDistilRecipe:
    """Distribution matching with the list 1000, 750, 500, 100 for every chunk."""
    # Motion terms belong to stage 2; the student has nothing to be compared with yet.
    return WanDistilRecipe(schedule="4", weights=LossWeights(spatial=1.0, gamma=0.0))


def stage2() -> WanDistilRecipe:
    """Diagonal lists and motion terms, from stage 1's result or a published student."""
    return WanDistilRecipe(schedule="4322222", seed=1)  # other draws than stage 1's, whose critic goes on


RECIPES: dict[str, Callable[[], WanRecipe]] = {
    "ode-pairs": ode_pairs,
    "ode-init": ode_init,
    "stage1": stage1,
    "stage2": stage2,
}
