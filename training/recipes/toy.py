"""Moving digits: all stages up to the scored teacher, for two CPU cores, for one accelerator and for a test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from diag_core import WanConfig
from diag_core.checkpoint import CheckpointSettings

from ..checks import require, require_at_least
from ..classifier import ClassifierConfig
from ..data.paths import MovingDigitsConfig
from ..metrics import HealthLimits
from ..stages.autoencoder import AutoencoderConfig
from .teacher import FlowMatchingRecipe

# The parts of the teacher's training, none of them longer than 40 minutes on two cores. Only the last lets the learning
# rate fall: what comes before goes on at once. First latent frames alone:
_LOOKS = FlowMatchingRecipe(seed=0, steps=1200, image_every=1, cooldown=0.0, compiled=True)
# Five latent frames of a video, and first ones now and then:
_MOTION = FlowMatchingRecipe(
    seed=1, steps=2000, image_every=4, sparse_of=(5, 6), sparse_stride=5, sparse_batch=48,
    cooldown=0.0, compiled=True,
)  # fmt: skip
# Every third frame of a video, and whole ones:
_VIDEOS = FlowMatchingRecipe(
    seed=2, steps=3000, image_every=8, sparse_of=(2, 3), sparse_stride=3, sparse_batch=36,
    cooldown=0.0, compiled=True,
)  # fmt: skip
# The same in turn, to the end:
_TEACHER = FlowMatchingRecipe(
    seed=3, steps=4200, image_every=16, sparse_of=(1, 2), sparse_stride=3, sparse_batch=36,
    cooldown=0.5, compiled=True,
)  # fmt: skip
# Whole videos, and hardly anything else, before the last part of a longer recipe:
_WHOLE = FlowMatchingRecipe(seed=3, steps=1900, image_every=16, cooldown=0.7, compiled=True)


NO_LIMITS = HealthLimits(static=0, washed_out=0, flashing=1e9, harsh=1e9, saturated=1e9)
"""for what learns nothing, and is neither static nor saturated then, but nothing at all"""


@dataclass(frozen=True, kw_only=True)
class ToyRecipe:
    """What is trained, on what, and how the teacher is sampled. The defaults are the recipe for two CPU cores."""

    data: MovingDigitsConfig = field(default_factory=MovingDigitsConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    latents_seed: int = 0
    """of the rendered videos and first frames"""
    pairs: float = 0.6
    """share of training samples with two digits. They need many different ones: with 3,200 videos of two the teacher
    learnt those by heart, and which digit a word belongs to only in them"""
    video_shards: int = 30
    videos_a_shard: int = 1000
    """a shard is the part of the data that one file holds; a kill costs at most one"""
    image_shards: int = 15
    images_a_shard: int = 10_000
    """first frames of other videos, rendered and encoded"""
    looks: FlowMatchingRecipe = _LOOKS
    """the teacher's first part, what things look like: single latent frames"""
    motion: FlowMatchingRecipe = _MOTION
    """its second, where they go and what belongs to which digit: few frames of a video; begins with the weights of
    `looks`"""
    videos: FlowMatchingRecipe = _VIDEOS
    """its third, whole videos as well; begins with the weights of `motion`"""
    teacher: FlowMatchingRecipe = _TEACHER
    """its last, where motions end, whose result is the teacher; begins with the weights of `videos`"""
    settings: CheckpointSettings = field(
        default_factory=lambda: CheckpointSettings(
            schedule="50", shift=5.0, causal=False, step="euler", cfg=3.0, text_encoder="demo-clauses",
            title="moving digits, teacher", license="Apache-2.0",
        )
    )  # fmt: skip
    """how the teacher is sampled"""
    sample_steps: int = 20
    """of a sample of the teacher while it is trained"""
    evaluation_prompts: int = 60
    """held-out ones that the stage `evaluate` scores each checkpoint on. The figures of the docs are of more"""
    evaluation_seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        sizes = ("video_shards", "videos_a_shard", "image_shards", "images_a_shard")
        require_at_least(self, 1, *sizes, "sample_steps", "evaluation_prompts")
        require_at_least(self, 0, "latents_seed")
        require(bool(self.evaluation_seeds), "evaluation_seeds", "must be one at least", self.evaluation_seeds)
        if self.autoencoder.data != self.data:
            raise ValueError("recipe: autoencoder and teacher are trained on other videos; give both one `data`")
        if any(stage.model != self.model for stage in self.parts.values()):
            raise ValueError(f"recipe: {', '.join(self.parts)} train one network; give all of them one `model`")
        if not 0 <= self.pairs <= 1:
            raise ValueError(f"recipe: pairs must be from 0 to 1, got {self.pairs}")
        if self.settings.causal:
            raise ValueError("recipe: the teacher is bidirectional; give settings with causal=False")

    @property
    def model(self) -> WanConfig:
        """of the teacher, and so of all that is distilled from it"""
        return self.teacher.model

    @property
    def parts(self) -> dict[str, FlowMatchingRecipe]:
        """of the teacher's training, in order"""
        return {"looks": self.looks, "motion": self.motion, "videos": self.videos, "teacher": self.teacher}

    def with_seed(self, seed: int) -> ToyRecipe:
        """The same recipe from other random numbers in every stage."""
        first = len(self.parts) * seed
        parts: Any = {name: replace(stage, seed=first + i) for i, (name, stage) in enumerate(self.parts.items())}
        return replace(
            self,
            autoencoder=replace(self.autoencoder, seed=seed),
            classifier=replace(self.classifier, seed=seed),
            latents_seed=seed,
            **parts,
        )


@dataclass(frozen=True, kw_only=True)
class LongToyRecipe(ToyRecipe):
    """One with a part more."""

    whole: FlowMatchingRecipe = _WHOLE
    """the teacher's fourth part, whole videos alone; begins with the weights of `videos`, and `teacher` with its own"""

    @property
    def parts(self) -> dict[str, FlowMatchingRecipe]:
        parts = super().parts
        last = parts.pop("teacher")
        return {**parts, "whole": self.whole, "teacher": last}


def toy() -> ToyRecipe:
    """64x64 pixels, sized for two CPU cores and three hours."""
    return ToyRecipe()


def toy_long() -> LongToyRecipe:
    """The same in five parts, most of them with a cooldown of their own: a better teacher, an hour later."""
    return LongToyRecipe(
        looks=replace(_LOOKS, steps=1500, cooldown=0.2),
        motion=replace(_MOTION, steps=2800, cooldown=0.2),
        videos=replace(_VIDEOS, steps=3600, sparse_of=(1, 2), sparse_stride=5, sparse_batch=48, cooldown=0.4),
        teacher=replace(_TEACHER, seed=4, steps=4600),
    )


def toy_accelerator() -> ToyRecipe:
    """128x128 pixels and 17 million parameters on one accelerator, sized for about 20 minutes in all; it has not been
    run."""
    data = MovingDigitsConfig.at(128)
    model = WanConfig(dim=384, ffn_dim=1024, num_heads=3, num_layers=8, text_len=32)
    return ToyRecipe(
        data=data,
        autoencoder=AutoencoderConfig(data=data, steps=4000, pixel_frames=416),
        video_shards=40,
        image_shards=24,
        looks=replace(_LOOKS, model=model, steps=3000, learning_rate=6e-4),
        motion=replace(_MOTION, model=model, steps=4000, video_batch=24, sparse_batch=96, learning_rate=6e-4),
        videos=replace(_VIDEOS, model=model, steps=4000, video_batch=24, sparse_batch=72, learning_rate=6e-4),
        teacher=replace(_TEACHER, model=model, steps=3000, video_batch=24, sparse_batch=72, learning_rate=6e-4),
        evaluation_seeds=(0, 1, 2),
    )


def toy_smoke() -> ToyRecipe:
    """Every stage for a few steps: proves that they fit together, learns nothing."""
    model = WanConfig(dim=128, ffn_dim=32, num_heads=1, num_layers=1, text_len=32)
    loop: dict[str, Any] = {"save_every": 1, "log_every": 2, "sample_every": 2, "sample_prompts": 2}
    loop["limits"] = NO_LIMITS
    few: dict[str, Any] = {"image_batch": 4, "video_batch": 2, "sparse_batch": 2, "model": model, "compiled": False}
    return ToyRecipe(
        autoencoder=AutoencoderConfig(steps=2, pixel_frames=18, **loop),
        classifier=ClassifierConfig(steps=2, batch=8),
        video_shards=1,
        videos_a_shard=8,
        image_shards=1,
        images_a_shard=16,
        looks=replace(_LOOKS, steps=3, **few, **loop),
        motion=replace(_MOTION, steps=5, image_every=3, **few, **loop),
        videos=replace(_VIDEOS, steps=3, **few, **loop),
        teacher=replace(_TEACHER, steps=3, **few, **loop),
        settings=replace(ToyRecipe().settings, schedule="1"),
        sample_steps=1,
        evaluation_prompts=4,
        evaluation_seeds=(0,),
    )
