"""Flow matching of the bidirectional teacher: every latent frame attends to every other.

A video has one noise level, as when it is sampled. Levels are logit-normal before the shift (arXiv 2403.03206): the
middle ones decide shape and motion, the ends are easy. Some samples are trained without their prompt, so that the
teacher can be sampled with classifier-free guidance.

A step draws everything from the seed and its own number, so a run that was killed and resumed makes the same draws as
one that was not, and on the same CPU gives the same weights.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.noise_schedule import add_noise, shift_sigma

from ..compilation import compile_blocks
from ..data.latents import LatentSet
from ..ema import EMA
from ..optimize import Optimizer
from ..precision import Forward, flow_of, precision_of
from ..recipes.teacher import FlowMatchingRecipe
from .ode_pairs import Encode


@dataclass(frozen=True)
class Batch:
    """What one step trains on, on the CPU."""

    latents: Tensor
    """[B,C,F,H,W] float32"""
    prompts: list[str]
    """"" where the prompt is left out"""
    sigma: Tensor
    """[B]"""
    noise: Tensor
    """as `latents`"""
    frame_positions: tuple[int, ...] | None = None
    """of the latent frames, where some are left out"""


def draw_sigmas(recipe: FlowMatchingRecipe, batch: int, generator: torch.Generator, *, frames: int) -> Tensor:
    """Noise levels [B] in 0..1, of samples of so many latent frames."""
    logits = torch.randn(batch, generator=generator)
    return shift_sigma(logits.mul(recipe.spread).sigmoid(), recipe.shift * frames**0.5)


def draw_batch(recipe: FlowMatchingRecipe, data: LatentSet, step: int) -> Batch:
    """The batch of step `step`, the same however often and wherever it is drawn."""
    rng = np.random.default_rng([recipe.seed, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    positions: tuple[int, ...] | None = None
    if recipe.on_images(step):
        size = recipe.image_batch
        images = torch.from_numpy(rng.integers(len(data.first_frames), size=size))
        latents, prompts = data.first_frames[images].unsqueeze(2), data.first_frame_prompts(images, rng)
    else:
        size = recipe.sparse_batch if recipe.on_sparse(step) else recipe.video_batch
        videos = torch.from_numpy(rng.integers(len(data.videos), size=size))
        latents, prompts = data.videos[videos], data.video_prompts(videos, rng)
        if recipe.on_sparse(step):
            # The first frame is always among them: where a digit begins says which way it can go.
            positions = tuple(range(0, latents.shape[2], recipe.sparse_stride))
            latents = latents[:, :, :: recipe.sparse_stride]
    dropped = rng.random(size) < recipe.prompt_dropout
    return Batch(
        latents.float(),
        ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)],
        draw_sigmas(recipe, size, generator, frames=latents.shape[2]),
        torch.randn(latents.shape, generator=generator),
        positions,
    )


def flow_matching_loss(
    model: Forward,
    latents: Tensor,
    context: Tensor,
    sigma_B: Tensor,
    noise: Tensor,
    frame_positions: tuple[int, ...] | None = None,
    *,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Mean squared error of the flow; latents and noise [B,C,F,H,W], context [B,L,text_dim]."""
    noisy = add_noise(latents, noise, sigma_B[:, None, None, None, None])
    flow = flow_of(model, noisy, sigma_B, context, precision=precision, frame_positions=frame_positions)
    return (flow - (noise - latents)).square().mean()


def learning_rate(recipe: FlowMatchingRecipe, step: int) -> float:
    """Warm-up, constant, linear cool-down."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    fall = min(1.0, (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps))
    return recipe.learning_rate * rise * fall


class FlowMatching:
    """The task of the trainer.

    Args:
        encode: prompts -> [B,L,text_dim].
        initial: weights to begin with, of an earlier stage; random ones when left out.

    Attributes:
        ema: the averaged weights, which are the result.
    """

    def __init__(
        self,
        recipe: FlowMatchingRecipe,
        data: LatentSet,
        encode: Encode,
        *,
        initial: Mapping[str, Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.data, self.encode = recipe, data, encode
        torch.manual_seed(recipe.seed)
        self.model = WanDiT(recipe.model)
        if initial is None:
            torch.nn.init.zeros_(self.model.head.head.weight)
        else:
            self.model.load_state_dict(initial)
        self.model.to(device)
        self.precision = precision_of(recipe.precision, device)
        if recipe.compiled:
            compile_blocks(self.model)
        self.optimizer = Optimizer(
            self.model,
            learning_rate=lambda done: learning_rate(recipe, done),
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
        )
        self.ema = EMA(self.model, recipe.ema)

    def update(self, step: int) -> dict[str, Tensor]:
        batch = draw_batch(self.recipe, self.data, step)
        device = self.model.device
        loss = flow_matching_loss(
            self.model, batch.latents.to(device), self.encode(batch.prompts).to(device), batch.sigma.to(device),
            batch.noise.to(device), batch.frame_positions, precision=self.precision,
        )  # fmt: skip
        logged, norm = self.optimizer.step([(loss, {"loss": loss.detach()})])
        self.ema.update(self.model)
        return logged | {"gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "updates": self.ema.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load(state["ema"], state["updates"])
