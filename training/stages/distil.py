"""Distribution matching of the student's own rollouts: stage 1 with one list of steps for all chunks, stage 2 with the
diagonal lists and the motion terms. What differs is in the recipe.

An iteration trains the critic on a rollout of the present student; every `generator_every`-th one trains the student
first. Only prompts are needed.

A batch is that of all processes. Everything is drawn for all of it, and each process computes its own samples, in
micro batches whose gradients add up.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diag_core import SeededNoise, WanDiT
from diag_core.noise_schedule import add_noise
from diag_core.transfer import to_device

from ..compilation import compile_blocks
from ..distributed import own_parts
from ..distribution_matching import estimates
from ..ema import EMA
from ..losses import (
    critic_loss,
    dmd_gradient,
    dmd_loss,
    flow_gradient,
    flow_loss,
    flow_regression_loss,
    frame_weights,
    regression_loss,
    total_loss,
)
from ..optimize import Losses, Optimizer, warming_up
from ..parallelize import parallelize
from ..precision import flow_of, precision_of
from ..recipes.distillation import DistilRecipe
from ..roles import Roles, trained
from ..rollout import RolloutConfig, rollout
from .ode_pairs import DrawPrompts, Encode

_GENERATOR, _CRITIC = 0, 1  # the draws of the two updates of an iteration do not mix


@dataclass(frozen=True)
class Draw:
    """What an update draws for a micro batch, from the seed and the update's number alone."""

    context: Tensor
    """[B,L,text_dim]"""
    rollout_noise: SeededNoise
    u: float
    """where chunks exit: one number for the batch, since all processes must run as many forwards"""
    sigma_B: Tensor
    noise: Tensor
    """[B,C,F,H,W]"""


class Distil:
    """The task of the trainer.

    Args:
        roles: generator and fake_score are trained in place; all are sharded in place over the processes there are.
        encode: prompts -> [B,L,text_dim].
        shape: of a video, (C,F,H,W).

    Raises:
        ValueError: regression terms without a frozen student that says how it is sampled; videos of no whole number
            of chunks; a batch that does not divide over processes and micro batches.
    """

    def __init__(
        self,
        recipe: DistilRecipe,
        roles: Roles,
        *,
        draw_prompts: DrawPrompts,
        encode: Encode,
        shape: tuple[int, int, int, int],
    ) -> None:
        if shape[1] % recipe.chunk_frames:
            raise ValueError(f"recipe: chunk_frames must divide the videos' {shape[1]} latent frames")
        self.recipe, self.roles, self.draw_prompts, self.encode, self.shape = recipe, roles, draw_prompts, encode, shape
        self.parts = own_parts(recipe.batch, recipe.micro_batch)
        self.device = roles.generator.device
        self.precision = precision_of(recipe.precision, roles.generator.device)
        self.config = RolloutConfig.of(recipe.settings(), self.precision)
        self.regression: tuple[WanDiT, RolloutConfig] | None = None
        if recipe.weights.needs_teacher_rollout:
            if roles.regression is None or roles.regression.settings is None:
                raise ValueError(
                    "recipe: weights.regression and weights.gamma need a frozen student to compare with, which says "
                    "how it is sampled"
                )
            settings = recipe.regression_settings(roles.regression.settings)
            self.regression = roles.regression.model, RolloutConfig.of(settings, self.precision)
        self.negative = encode([recipe.negative_prompt]).to(self.device)
        self.generator, self.critic = trained(roles.generator), trained(roles.fake_score)
        for model in (self.generator, self.critic):
            parallelize(model, precision=self.precision, checkpointing=recipe.checkpointing)
        for frozen in (roles.real_score, *([] if roles.regression is None else [roles.regression.model])):
            parallelize(frozen, precision=self.precision)
        self.real_score = roles.real_score
        if recipe.compiled:
            for model in (self.critic, self.real_score):
                compile_blocks(model)
        self.generator_optimizer = self._optimizer(self.generator, recipe.learning_rate)
        self.critic_optimizer = self._optimizer(self.critic, recipe.critic_learning_rate)
        self.ema = EMA(self.generator, recipe.ema, recipe.ema_start)

    def _optimizer(self, model: WanDiT, learning_rate: float) -> Optimizer:
        recipe = self.recipe
        return Optimizer(
            model,
            learning_rate=warming_up(learning_rate, recipe.warmup_steps),
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
        )

    def update(self, step: int) -> dict[str, Tensor]:
        values = self.update_generator(step) if step % self.recipe.generator_every == 0 else {}
        return values | self.update_critic(step)

    def update_generator(self, step: int, u: float | None = None) -> dict[str, Tensor]:
        """The student's part of iteration `step`.

        Args:
            u: in [0,1), where chunks exit instead of where is drawn; for measurements.
        """
        losses = map(self._generator_losses, self._draws(step, _GENERATOR, u))
        means, norm = self.generator_optimizer.step(losses, len(self.parts))
        self.ema.update(self.generator)
        return {"generator_norm": norm, **means}

    def update_critic(self, step: int, u: float | None = None) -> dict[str, Tensor]:
        """The critic's part, with a rollout of the present student; u as above."""
        losses = map(self._critic_losses, self._draws(step, _CRITIC, u))
        means, norm = self.critic_optimizer.step(losses, len(self.parts))
        return {"critic_norm": norm, **means}

    def _draws(self, step: int, which: int, u: float | None = None) -> Iterator[Draw]:
        """This process's micro batches, one at a time."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step, which])
        prompts = self.draw_prompts(rng, recipe.batch)
        seeds = [int(seed) for seed in rng.integers(2**62, size=recipe.batch)]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        drawn = float(rng.random())
        sigma_B = recipe.noise.draw(recipe.batch, generator)
        for part in self.parts:
            yield Draw(
                context=to_device(self.encode(prompts[part]), self.device),
                rollout_noise=SeededNoise(seeds[part]),
                u=drawn if u is None else u,
                sigma_B=to_device(sigma_B[part], self.device),
                noise=to_device(_noise(seeds[part], self.shape), self.device),
            )

    def _generator_losses(self, draw: Draw) -> Losses:
        recipe = self.recipe
        shape = (len(draw.context), *self.shape)
        x = rollout(
            self.generator, draw.context, self.config, noise=draw.rollout_noise, shape=shape, u=draw.u, gradients=True
        ).latents
        scores = estimates(
            x.detach(),
            fake_score=self.critic,
            real_score=self.real_score,
            context=draw.context,
            negative=self.negative,
            cfg=recipe.cfg,
            sigma_B=draw.sigma_B,
            noise=draw.noise,
            precision=self.precision,
        )
        teacher_x0 = self._regression_target(draw, shape)

        def term(name: str) -> Tensor:
            if name == "dmd":
                return dmd_loss(x, dmd_gradient(x, scores.fake, scores.real))
            if name == "flow":
                g_m = flow_gradient(x, scores.fake, scores.real)
                return flow_loss(x, g_m, frame_weights(g_m))
            assert teacher_x0 is not None
            return (regression_loss if name == "regression" else flow_regression_loss)(x, teacher_x0)

        loss, terms = total_loss(recipe.weights, term)
        return loss, {"generator": loss.detach(), **terms}

    def _regression_target(self, draw: Draw, shape: tuple[int, int, int, int, int]) -> Tensor | None:
        """What the frozen student makes of the same noise at its last steps."""
        if self.regression is None:
            return None
        model, config = self.regression
        return rollout(model, draw.context, config, noise=draw.rollout_noise, shape=shape, gradients=False).latents

    def _critic_losses(self, draw: Draw) -> Losses:
        shape = (len(draw.context), *self.shape)
        x = rollout(
            self.generator, draw.context, self.config, noise=draw.rollout_noise, shape=shape, u=draw.u, gradients=False
        ).latents
        x_t = add_noise(x, draw.noise, draw.sigma_B[:, None, None, None, None])
        flow = flow_of(self.critic, x_t, draw.sigma_B, draw.context, precision=self.precision)
        loss = critic_loss(flow, x, draw.noise)
        return loss, {"critic": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "updates": self.ema.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.ema.load(state["ema"], state["updates"])


def _noise(seeds: list[int], shape: tuple[int, int, int, int]) -> Tensor:
    """Noise [B,C,F,H,W] of samples, each from its own seed: nobody draws what is another process's."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
