"""Moving digits, at a size that two CPU cores train in about an hour and a half."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from diag_core import WanConfig
from diag_core.checkpoint import CheckpointSettings

from ..classifier import ClassifierConfig
from ..stages.autoencoder import AutoencoderConfig
from .causal_flow import CausalFlowRecipe


@dataclass(frozen=True, kw_only=True)
class ToyRecipe:
    """All stages of the first moving-digits model, and how it is sampled."""

    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(steps=1600))
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    video_shards: int = 16
    videos_a_shard: int = 1000
    image_shards: int = 15
    images_a_shard: int = 10_000
    flow: CausalFlowRecipe = field(default_factory=CausalFlowRecipe)
    """single frames, then videos in large batches: what a digit looks like"""
    flow_steps: int = 1800
    """steps of `flow` that are run; its average then goes on with `motion`"""
    motion: CausalFlowRecipe = field(
        default_factory=lambda: CausalFlowRecipe(
            seed=1, image_steps=0, video_steps=2400, image_every=10, image_batch=96, video_batch=12, warmup_steps=50,
            cooldown=0.4, ema=0.998, save_every=100,
        )
    )  # fmt: skip
    """many steps on small batches of videos: how it moves"""
    settings: CheckpointSettings = field(
        default_factory=lambda: CheckpointSettings(
            schedule="10", shift=3.0, kv_noise=25.0, reuse_last_step=False, step="euler", cfg=3.5, text_encoder="demo",
            title="moving digits", license="Apache-2.0",
        )
    )  # fmt: skip
    evaluation_prompts: int = 400
    evaluation_seeds: tuple[int, ...] = (0, 1, 2)

    def with_seed(self, seed: int) -> ToyRecipe:
        """The same recipe from other random numbers in every stage."""
        return replace(
            self,
            autoencoder=replace(self.autoencoder, seed=seed),
            classifier=replace(self.classifier, seed=seed),
            flow=replace(self.flow, seed=2 * seed),
            motion=replace(self.motion, seed=2 * seed + 1),
        )


def toy() -> ToyRecipe:
    """The recipe of the embedded checkpoint."""
    return ToyRecipe()


def toy_smoke() -> ToyRecipe:
    """Every stage for a few steps: proves that they fit together, learns nothing."""
    return ToyRecipe(
        autoencoder=AutoencoderConfig(steps=2, pixel_frames=18),
        classifier=ClassifierConfig(steps=2, batch=8),
        video_shards=1,
        videos_a_shard=8,
        image_shards=1,
        images_a_shard=16,
        flow=CausalFlowRecipe(
            model=WanConfig(dim=128, ffn_dim=32, num_heads=1, num_layers=1, text_len=32),
            image_steps=2,
            video_steps=2,
            image_batch=4,
            video_batch=2,
            save_every=1,
        ),
        flow_steps=3,
        motion=CausalFlowRecipe(
            model=WanConfig(dim=128, ffn_dim=32, num_heads=1, num_layers=1, text_len=32),
            image_steps=0,
            video_steps=1,
            video_batch=2,
        ),
        settings=replace(ToyRecipe().settings, schedule="1"),
        evaluation_prompts=2,
        evaluation_seeds=(0,),
    )
