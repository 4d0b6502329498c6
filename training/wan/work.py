"""How much arithmetic an update takes, counted from sizes alone (tests compare it with PyTorch's own count).

A multiplication and an addition are 2 FLOPs. Counted are matrix products, which is all that takes time at these sizes.
The backward pass of a linear layer takes twice its forward; that of attention 2.5 times, for flash kernels compute the
scores again.

Legend: N query tokens, M attended tokens, T text tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, WanConfig
from diag_core.checkpoint import CheckpointSettings
from diag_core.config import PATCH
from diag_core.geometry import chunk_spans, tokens_per_frame

from ..block_causal import causal_blocks
from ..recipes.wan import VideoSize, WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe
from ..rollout import exit_step


@dataclass(frozen=True)
class Work:
    """FLOPs by how their backward pass counts."""

    linear: float = 0.0
    """in the blocks"""
    attention: float = 0.0
    outside: float = 0.0
    """linear layers outside the blocks"""
    entry: float = 0.0
    """those of them whose input needs no gradient: their backward is as much as their forward"""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(getattr(self, f.name) * factor for f in fields(self)))

    @property
    def forward(self) -> float:
        return self.linear + self.attention + self.outside + self.entry

    def trained(self, *, checkpointing: bool, lora: bool = False) -> float:
        """Forward and backward; with a LoRA the gradients of the weights themselves are left out."""
        of_linear = 1 if lora else 2
        again = self.linear + self.attention if checkpointing else 0.0
        backward = of_linear * (self.linear + self.outside) + 2.5 * self.attention + (0 if lora else self.entry)
        return self.forward + backward + again


def forward_work(config: WanConfig, tokens: int, attended: float, *, timesteps: int = 1, text: bool = True) -> Work:
    """One forward of one sample.

    Args:
        attended: on average.
        timesteps: noise levels: 1 for the video, or one a latent frame.
        text: whether what depends on the prompt alone is computed; a cache keeps it.
    """
    dim, layers, channels = config.dim, config.num_layers, math.prod(PATCH)
    linear = layers * 2 * tokens * dim * (6 * dim + 2 * config.ffn_dim)
    attention = layers * 4 * tokens * dim * (attended + config.text_len)
    outside = 2 * tokens * dim * config.out_dim * channels + 2 * timesteps * dim * 7 * dim
    entry = 2 * tokens * dim * config.in_dim * channels + 2 * timesteps * config.freq_dim * dim
    if text:
        linear += layers * 2 * config.text_len * 2 * dim * dim
        outside += 2 * config.text_len * dim * dim
        entry += 2 * config.text_len * config.text_dim * dim
    return Work(linear, attention, outside, entry)


@dataclass(frozen=True)
class RolloutWork:
    """Forwards of one rollout of one sample, with gradient and without."""

    plain: Work = Work()
    graded: Work = Work()


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """What `training.rollout.rollout` is given, as far as work depends on it."""

    config: WanConfig
    schedule: DiagonalSchedule
    policy: ContextPolicy
    cache: CacheConfig
    chunk_frames: int
    latent_frames: int
    frame_tokens: int

    def held(self) -> list[tuple[int, int]]:
        """(tokens of the past that a chunk sees, its own tokens) of each chunk."""
        spans = chunk_spans(self.latent_frames, self.chunk_frames)
        most = self.cache.frames(self.latent_frames)
        seen = [min(span.start + span.length, most) - span.length for span in spans]
        return [(past * self.frame_tokens, s.length * self.frame_tokens) for past, s in zip(seen, spans, strict=True)]

    def work(self, u: float | None, *, gradients: bool) -> RolloutWork:
        """As `rollout` does it; None exits at the last steps."""
        plain, graded, written = Work(), Work(), False
        chunks = self.held()
        for chunk, (past, own) in enumerate(chunks):
            sigmas = self.schedule.sigmas(chunk)
            exit_at = exit_step(u, len(sigmas))
            early = exit_at + 1 < len(sigmas)
            writes = exit_at + (not gradients)
            if chunk + 1 < len(chunks) and (early or gradients or not self.policy.reuses(sigmas[-1])):
                writes += 1
            for _ in range(writes):
                plain += forward_work(self.config, own, past + own, text=not written)
                written = True
            if gradients:
                graded += forward_work(self.config, own, past + own)
        return RolloutWork(plain, graded)

    def exits(self) -> list[float]:
        """Values of u that stand for all, equally likely."""
        chunks = len(chunk_spans(self.latent_frames, self.chunk_frames))
        count = math.lcm(*(len(self.schedule.sigmas(chunk)) for chunk in range(chunks)))
        return [float(Fraction(2 * k + 1, 2 * count)) for k in range(count)]


@dataclass(frozen=True, kw_only=True)
class DistilWork:
    """FLOPs of stage 1 or 2 for one video.

    Args:
        generator, critic, real_score: sizes of the models.
        regression: how the generator's file says it is sampled, which losses may compare with; None: as the student.
    """

    recipe: WanDistilRecipe
    generator: WanConfig
    critic: WanConfig
    real_score: WanConfig
    regression: CheckpointSettings | None = None

    def plan(self) -> RolloutPlan:
        """Of the student."""
        return self._plan(self.recipe.settings())

    def regression_plan(self) -> RolloutPlan:
        """Of the frozen student."""
        return self._plan(self.recipe.regression_settings(self.regression or self.recipe.settings()))

    def _plan(self, settings: CheckpointSettings) -> RolloutPlan:
        return RolloutPlan(
            config=self.generator,
            schedule=settings.diagonal_schedule(),
            policy=settings.policy(),
            cache=settings.cache(),
            chunk_frames=settings.chunk_frames,
            latent_frames=self.recipe.video.latent_frames,
            frame_tokens=frame_tokens(self.recipe.video),
        )

    def generator_update(self, u: float | None = None) -> float:
        """With its scores and, where a loss asks for it, the frozen student's rollout; the mean over u where None."""
        plan, recipe = self.plan(), self.recipe
        lora = recipe.lora.rank > 0
        total = 0.0
        exits = plan.exits() if u is None else [u]
        for value in exits:
            own = plan.work(value, gradients=True)
            total += own.plain.forward + own.graded.trained(checkpointing=recipe.checkpointing, lora=lora)
        total /= len(exits)
        total += whole(self.critic, recipe.video).forward
        total += whole(self.real_score, recipe.video).forward * (1 if recipe.cfg == 1 else 2)
        if recipe.weights.needs_teacher_rollout:
            total += self.regression_plan().work(None, gradients=False).plain.forward
        return total

    def critic_update(self, u: float | None = None) -> float:
        """With its rollout; the mean over u where None."""
        plan, recipe = self.plan(), self.recipe
        exits = plan.exits() if u is None else [u]
        own = sum(plan.work(value, gradients=False).plain.forward for value in exits) / len(exits)
        lora = recipe.lora.rank > 0 and recipe.lora.critic
        return own + whole(self.critic, recipe.video).trained(checkpointing=recipe.checkpointing, lora=lora)

    def iteration(self) -> float:
        """The mean of one iteration: the critic each time, the generator every n-th."""
        return self.critic_update() + self.generator_update() / self.recipe.generator_every


def whole(config: WanConfig, video: VideoSize, *, timesteps: int = 1) -> Work:
    """A forward over all frames, each attending to each."""
    tokens = frame_tokens(video) * video.latent_frames
    return forward_work(config, tokens, tokens, timesteps=timesteps)


def frame_tokens(video: VideoSize) -> int:
    return tokens_per_frame(*video.shape(1)[2:])


def pair_work(recipe: WanOdePairsRecipe, teacher: WanConfig) -> float:
    """FLOPs of one trajectory."""
    return whole(teacher, recipe.video).forward * recipe.steps * (1 if recipe.cfg == 1 else 2)


def init_work(recipe: WanOdeInitRecipe, student: WanConfig) -> float:
    """FLOPs of one video of an update."""
    runs = init_runs(recipe)
    tokens = sum(own for own, _ in runs)
    attended = sum(own * sum(seen) for own, seen in runs) / tokens
    work = forward_work(student, tokens, attended, timesteps=recipe.video.latent_frames)
    return work.trained(checkpointing=recipe.checkpointing)


def init_runs(recipe: WanOdeInitRecipe) -> list[tuple[int, list[int]]]:
    """(queries, keys that they attend to, by contiguous part) of each chunk of ODE initialisation."""
    cache = CacheConfig(recipe.window_frames, recipe.sink_frames)
    blocks = causal_blocks(recipe.video.latent_frames, frame_tokens(recipe.video), recipe.chunk_frames, cache)
    return [(own.stop - own.start, [part.stop - part.start for part in seen]) for own, seen in blocks.runs]
