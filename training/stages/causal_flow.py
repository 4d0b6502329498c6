"""Flow matching of a causal DiT from scratch, with noised past chunks (the first moving-digits model).

Every chunk of a video has a noise level of its own (diffusion forcing, arXiv 2407.01392). A cut is drawn for each
video: chunks before it are shown at one low level, as the sampler commits finished chunks, so that the chunk at the
cut sees exactly what it will see when sampled; chunks from the cut on are drawn independently. All levels are trained
in the one forward, under the window and sink that the sampler will use.

Legend: B samples, F latent frames, K chunks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.geometry import tokens_per_frame
from diag_core.noise_schedule import add_noise, shift_sigma

from ..block_causal import token_mask
from ..data.latents import LatentSet
from ..ema import EMA
from ..io import load_state, save_state
from ..recipes.causal_flow import CausalFlowRecipe

log = logging.getLogger(__name__)


def draw_sigmas(recipe: CausalFlowRecipe, batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """Noise levels [B,F], constant within a chunk."""
    chunks = -(-frames // recipe.chunk_frames)
    # Logit-normal before the shift: the middle levels decide shape and motion, the ends are easy.
    sigma_BK = shift_sigma(torch.randn(batch, chunks, generator=generator).mul(1.2).sigmoid(), recipe.shift)
    context_B1 = torch.rand(batch, 1, generator=generator) * recipe.max_context_sigma
    cut_B1 = torch.randint(chunks, (batch, 1), generator=generator)
    sigma_BK = torch.where(torch.arange(chunks) < cut_B1, context_B1, sigma_BK)
    return sigma_BK.repeat_interleave(recipe.chunk_frames, 1)[:, :frames]


def flow_matching_loss(
    model: WanDiT, latents: Tensor, context: Tensor, sigma_BF: Tensor, noise: Tensor, mask: Tensor | None
) -> Tensor:
    """Mean squared error of the flow; latents and noise [B,C,F,H,W]."""
    noisy = add_noise(latents, noise, sigma_BF[:, None, :, None, None])
    with torch.autocast(latents.device.type, torch.bfloat16):
        flow = model(noisy, 1000 * sigma_BF, context, mask=mask)
    return (flow.float() - (noise - latents)).square().mean()


def learning_rate(recipe: CausalFlowRecipe, step: int) -> float:
    """Warm-up, constant, linear cool-down."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    fall = min(1.0, (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps))
    return recipe.learning_rate * rise * fall


def train(
    recipe: CausalFlowRecipe,
    data: LatentSet,
    encode: Callable[[list[str]], Tensor],
    folder: Path,
    *,
    initial: dict[str, Tensor] | None = None,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Trains, resuming from `folder` if it holds a state of the same recipe; returns the averaged weights.

    A step draws everything from the seed and its own number, so a run that was killed and resumed gives the same
    weights.

    Args:
        encode: prompts -> [B,L,text_dim].
        initial: weights to begin with, of an earlier run; random ones when left out.
        stop_after: end after this step, before the recipe does.

    Raises:
        ValueError: `folder` holds the state of another recipe.
        FloatingPointError: the loss is not finite.
    """
    fingerprint = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    torch.manual_seed(recipe.seed)
    model = WanDiT(recipe.model)
    if initial is None:
        torch.nn.init.zeros_(model.head.head.weight)
    else:
        model.load_state_dict(initial)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    ema = EMA(model, recipe.ema)
    first = 0
    if state := load_state(folder / "state.pt"):
        if state["fingerprint"] != fingerprint:
            raise ValueError(
                f"{folder / 'state.pt'} was written by another recipe: resume with the recipe it began with, or choose "
                "another output folder"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load(state["ema"], state["step"])
        first = state["step"]
        log.info("resuming at step %d of %d", first, recipe.steps)

    mask: Tensor | None = None
    losses: list[float] = []
    began = time.monotonic()
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for step in range(first, last):
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        if recipe.on_images(step):
            index = torch.from_numpy(rng.integers(len(data.first_frames), size=recipe.image_batch))
            latents, prompts = data.first_frames[index].unsqueeze(2), data.first_frame_prompts(index, rng)
            step_mask = None
        else:
            index = torch.from_numpy(rng.integers(len(data.videos), size=recipe.video_batch))
            latents, prompts = data.videos[index], data.video_prompts(index, rng)
            frames, height, width = latents.shape[2:]
            if mask is None:
                mask = token_mask(frames, tokens_per_frame(height, width), recipe.chunk_frames, recipe.cache)
            step_mask = mask
        dropped = rng.random(len(prompts)) < recipe.prompt_dropout
        prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        latents = latents.float()
        sigma = draw_sigmas(recipe, latents.shape[0], latents.shape[2], generator)
        noise = torch.randn(latents.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = flow_matching_loss(model, latents, encode(prompts), sigma, noise, step_mask)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}: lower the learning rate and start anew")
        done = step + 1
        if done % recipe.log_every == 0:
            log.info(
                "step %d/%d  %s  loss %.4f  gradient norm %.2f  %.2f s/step",
                done, recipe.steps, "images" if recipe.on_images(step) else "videos",
                float(np.mean(losses)), float(norm), (time.monotonic() - began) / (done - first),
            )  # fmt: skip
            losses.clear()
        if done % recipe.save_every == 0 or done == last:
            save_state(
                folder / "state.pt",
                {
                    "fingerprint": fingerprint,
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                },
            )
    return ema.state_dict()
