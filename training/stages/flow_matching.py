"""Flow matching of the bidirectional teacher: every latent frame attends to every other.

A video has one noise level, as when it is sampled. Levels are logit-normal before the shift (arXiv 2403.03206): the
middle ones decide shape and motion, the ends are easy. Some samples are trained without their prompt, so that the
teacher can be sampled with classifier-free guidance.

A step draws everything from the seed and its own number, so a run that was killed and resumed makes the same draws as
one that was not, and on the same CPU gives the same weights.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.noise_schedule import add_noise, shift_sigma

from ..compilation import compile_blocks
from ..data.latents import LatentSet
from ..ema import EMA
from ..io import load_state, save_state
from ..logbook import Logbook
from ..metrics import require_finite
from ..precision import autocast
from ..recipes.teacher import FlowMatchingRecipe

log = logging.getLogger(__name__)


class Model(Protocol):
    """latents [B,C,F,H,W], timestep [B], context [B,L,text_dim] -> flow [B,C,F,H,W]"""

    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, *, frame_positions: tuple[int, ...] | None
    ) -> Tensor: ...


Watch = Callable[[int, dict[str, Tensor]], Mapping[str, float]]
"""(steps done, averaged weights) -> scores for the log"""
Encode = Callable[[list[str]], Tensor]
"""prompts -> context [B,L,text_dim]"""


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
    model: Model,
    latents: Tensor,
    context: Tensor,
    sigma_B: Tensor,
    noise: Tensor,
    frame_positions: tuple[int, ...] | None = None,
) -> Tensor:
    """Mean squared error of the flow, in autocast; latents and noise [B,C,F,H,W], context [B,L,text_dim]."""
    noisy = add_noise(latents, noise, sigma_B[:, None, None, None, None])
    with autocast(latents.device):
        flow = model(noisy, 1000 * sigma_B, context, frame_positions=frame_positions)
    return (flow.float() - (noise - latents)).square().mean()


def learning_rate(recipe: FlowMatchingRecipe, step: int) -> float:
    """Warm-up, constant, linear cool-down."""
    rise = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    fall = min(1.0, (recipe.steps - step) / max(1.0, recipe.cooldown * recipe.steps))
    return recipe.learning_rate * rise * fall


def train(
    recipe: FlowMatchingRecipe,
    data: LatentSet,
    encode: Encode,
    folder: Path,
    *,
    initial: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """Trains, resuming from `folder` if it holds a state of the same recipe; returns the averaged weights.

    Args:
        encode: prompts -> [B,L,text_dim].
        initial: weights to begin with, of an earlier stage; random ones when left out.
        stop_after: end after this step, before the recipe does.
        watch: called whenever the state has been saved.

    Raises:
        ValueError: `folder` holds the state of another recipe.
        Collapse: the loss is no number; no state is saved from then on.
        OSError: a full disk, say; the last state stays whole.
    """
    fingerprint = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    torch.manual_seed(recipe.seed)
    model = WanDiT(recipe.model)
    if initial is None:
        torch.nn.init.zeros_(model.head.head.weight)
    else:
        model.load_state_dict(initial)
    model.to(device)
    if recipe.compiled:
        compile_blocks(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    ema = EMA(model, recipe.ema)
    first = 0
    state_path = folder / "state.pt"
    if state := load_state(state_path):
        if state["fingerprint"] != fingerprint:
            raise ValueError(
                f"{state_path} was written by another recipe: resume with the recipe it began with, or choose another "
                "output folder"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load({name: tensor.to(device) for name, tensor in state["ema"].items()}, state["step"])
        first = state["step"]
        log.info("teacher: going on from step %d of %d", first, recipe.steps)

    logbook = Logbook(folder, first)
    losses: list[Tensor] = []
    began = time.monotonic()
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for step in range(first, last):
        batch = draw_batch(recipe, data, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        loss = flow_matching_loss(
            model, batch.latents.to(device), encode(batch.prompts).to(device), batch.sigma.to(device),
            batch.noise.to(device), batch.frame_positions,
        )  # fmt: skip
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        losses.append(loss.detach())
        done = step + 1
        if done % recipe.log_every == 0 or done == last:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            rate = learning_rate(recipe, step)
            logbook.write(done, {"loss": mean, "gradient_norm": float(norm), "learning_rate": rate})
            require_finite(done, {"the teacher's loss": mean})
            log.info(
                "teacher: step %d of %d, %s, loss %.4f, gradient norm %.2f, %.2f s/step",
                done, recipe.steps, "images" if recipe.on_images(step) else "videos", mean, float(norm),
                (time.monotonic() - began) / (done - first),
            )  # fmt: skip
        if done % recipe.save_every == 0 or done == last:
            require_finite(done, {"the teacher's loss": float(loss.detach()), "its gradient norm": float(norm)})
            save_state(
                state_path,
                {
                    "fingerprint": fingerprint,
                    "step": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                },
            )
            scores = watch(done, ema.state_dict()) if watch is not None else {}
            if scores:
                logbook.write(done, scores)
    logbook.close()
    return ema.state_dict()
