"""Moving digits, distilled: all stages from nothing to a checkpoint, for two CPU cores, an accelerator or a test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..losses import LossWeights
from .distillation import DistilRecipe, OdeInitRecipe, OdePairsRecipe
from .toy import NO_LIMITS, ToyRecipe, toy, toy_accelerator, toy_long, toy_smoke


def _cpu_pairs() -> OdePairsRecipe:
    # 20 uniform steps hit 1000, 750, 500 and 100 exactly. Guidance is what the teacher samples best with.
    return OdePairsRecipe(shards=12, pairs_a_shard=64, batch=16, steps=20, cfg=3.0, precision="auto", compiled=True)


def _cpu_init() -> OdeInitRecipe:
    return OdeInitRecipe(
        steps=600, batch=12, learning_rate=3e-4, clip=1.0, sample_every=150, precision="auto", compiled=True
    )


def _cpu_stage(**changes: Any) -> DistilRecipe:
    recipe = DistilRecipe(
        batch=8, generator_every=3, cfg=3.0, learning_rate=5e-5, critic_learning_rate=1e-4, warmup_steps=20,
        precision="auto", compiled=True,
    )  # fmt: skip
    return replace(recipe, **changes)


def _cpu_stage1() -> DistilRecipe:
    # Motion terms belong to stage 2; the student has nothing to be compared with yet.
    return _cpu_stage(schedule="4", steps=250, weights=LossWeights(spatial=1.0, gamma=0.0))


def _cpu_stage2() -> DistilRecipe:
    # Other draws than stage 1's: its critic, which goes on, has seen those.
    return _cpu_stage(schedule="4322222", steps=600, seed=1, weights=LossWeights(regression=1.0))


@dataclass(frozen=True, kw_only=True)
class MovingDigitsRecipe:
    """Every stage's settings. The defaults are the recipe for two CPU cores."""

    preparation: ToyRecipe = field(default_factory=toy)
    """autoencoder, classifier, latents, teacher, and how results are scored"""
    ode_pairs: OdePairsRecipe = field(default_factory=_cpu_pairs)
    ode_init: OdeInitRecipe = field(default_factory=_cpu_init)
    stage1: DistilRecipe = field(default_factory=_cpu_stage1)
    """uniform step lists"""
    stage2: DistilRecipe = field(default_factory=_cpu_stage2)
    """diagonal step lists and motion"""
    title: str = "moving digits"
    """of the checkpoint, in its metadata"""
    license: str = "Apache-2.0"

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "window_frames", "sink_frames"):
            if len({getattr(stage, name) for stage in (self.ode_init, self.stage1, self.stage2)}) > 1:
                raise ValueError(f"recipe: ode_init, stage1 and stage2 need the same {name}")
        if self.stage1.weights.needs_teacher_rollout:
            raise ValueError(
                "recipe: stage1 has no frozen student to compare with; set stage1.weights.gamma and "
                "stage1.weights.regression to 0"
            )

    def with_seed(self, seed: int) -> MovingDigitsRecipe:
        """The same recipe from other random numbers in every stage."""
        return replace(
            self,
            preparation=self.preparation.with_seed(seed),
            ode_pairs=replace(self.ode_pairs, seed=seed),
            ode_init=replace(self.ode_init, seed=seed),
            stage1=replace(self.stage1, seed=2 * seed),
            stage2=replace(self.stage2, seed=2 * seed + 1),
        )


def cpu() -> MovingDigitsRecipe:
    """64x64 pixels, sized for two CPU cores and three hours."""
    return MovingDigitsRecipe()


def cpu_long() -> MovingDigitsRecipe:
    """The same, an hour longer: the embedded checkpoint was made by it (docs/distillation.md)."""
    short = MovingDigitsRecipe()
    return replace(
        short,
        preparation=toy_long(),
        ode_pairs=replace(short.ode_pairs, shards=16),
        ode_init=replace(short.ode_init, steps=900),
        stage1=replace(short.stage1, steps=400),
        stage2=replace(short.stage2, steps=500),
    )


def accelerator() -> MovingDigitsRecipe:
    """128x128 pixels and 17 million parameters on one accelerator; it has not been run."""
    stage: dict[str, Any] = {"batch": 32, "generator_every": 5, "steps": 1500}
    return MovingDigitsRecipe(
        preparation=toy_accelerator(),
        ode_pairs=replace(_cpu_pairs(), shards=32, pairs_a_shard=128, batch=128, steps=40),
        ode_init=replace(_cpu_init(), steps=2000, batch=64),
        stage1=replace(_cpu_stage1(), **stage),
        stage2=replace(_cpu_stage2(), **stage),
    )


def smoke() -> MovingDigitsRecipe:
    """Every stage for a few steps on short videos: proves that they fit together, learns nothing."""
    preparation = toy_smoke()
    data = replace(preparation.data, num_pixel_frames=21)
    loop: dict[str, Any] = {
        "save_every": 1, "log_every": 1, "sample_every": 2, "sample_prompts": 2, "limits": NO_LIMITS, "batch": 2,
        "compiled": False,
    }  # fmt: skip
    return MovingDigitsRecipe(
        preparation=replace(
            preparation, data=data, autoencoder=replace(preparation.autoencoder, data=data), evaluation_prompts=2
        ),
        ode_pairs=replace(_cpu_pairs(), shards=2, pairs_a_shard=2, batch=2, compiled=False),
        ode_init=replace(_cpu_init(), steps=2, **loop),
        stage1=replace(_cpu_stage1(), steps=4, **loop),
        stage2=replace(_cpu_stage2(), steps=4, **loop),
    )


RECIPES = {"toy": cpu, "toy-long": cpu_long, "toy-accelerator": accelerator, "toy-smoke": smoke}
