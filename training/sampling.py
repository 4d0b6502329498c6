"""Latents of a model as its checkpoint's settings say: a causal one chunk by chunk, a bidirectional one whole.

Float32 weights are run in autocast, others as they are.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diag_core import SeededNoise, WanDiT, generate
from diag_core.checkpoint import CheckpointSettings
from diag_core.denoising import denoise_chunk

from .precision import guided_flow, sampling_autocast, sampling_precision


@torch.no_grad()
def sample_latents(
    model: WanDiT,
    settings: CheckpointSettings,
    context: Tensor,
    negative: Tensor,
    noise: SeededNoise,
    shape: tuple[int, int, int, int],
) -> Tensor:
    """Videos [B,C,F,H,W] as a user of the checkpoint would sample them.

    Args:
        context: [B,L,text_dim], on the model's device.
        negative: [1,L,text_dim], the same for all samples.
        shape: (C,F,H,W).

    Raises:
        ValueError: a bidirectional model that is to be sampled in other steps than Euler's.
    """
    schedule = settings.diagonal_schedule()
    _, frames, height, width = shape
    if settings.causal:
        with sampling_autocast(model):
            return generate(
                model,
                context,
                schedule,
                noise=noise,
                num_latent_frames=frames,
                height=height,
                width=width,
                cache=settings.cache(),
                policy=settings.policy(),
                chunk_frames=settings.chunk_frames,
                step=settings.step,
                cfg=settings.cfg,
                negative=negative.expand_as(context),
            )
    if settings.step != "euler":
        raise ValueError(f"a bidirectional checkpoint is sampled with step 'euler', its settings say {settings.step!r}")
    start = noise.initial(0, (len(context), *shape)).to(model.device)
    return sample_whole(model, start, context, negative, schedule.sigmas(0), cfg=settings.cfg)


@torch.no_grad()
def sample_whole(
    model: WanDiT,
    noise: Tensor,
    context: Tensor,
    negative: Tensor,
    sigmas: Sequence[float],
    *,
    cfg: float,
) -> Tensor:
    """Videos [B,C,F,H,W] of a bidirectional model, by Euler steps with classifier-free guidance. Without a cache, which
    nothing would read: those of a 14B model's two branches are 50 GiB.

    Args:
        noise: [B,C,F,H,W], float32 on the model's device.
        negative: [1,L,text_dim], the same for all samples.
        sigmas: descending, without the final 0.
    """
    precision = sampling_precision(model)

    def predict(x: Tensor, sigma: float) -> Tensor:
        return guided_flow(model, x, sigma, context, negative, cfg, precision=precision)

    return denoise_chunk(predict, noise, sigmas, step="euler")
