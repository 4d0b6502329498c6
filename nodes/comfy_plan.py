"""How a video goes through the sampler, and what memory that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..diag_core import CacheConfig, ContextPolicy, WanConfig
from ..diag_core.geometry import tokens_per_frame
from ..diag_core.settings import CheckpointSettings
from . import comfy_bridge
from .comfy_fast import idle_bytes


@dataclass(frozen=True)
class Plan:
    """What is sampled how, for latents of F frames."""

    chunk_frames: int
    cache: CacheConfig
    policy: ContextPolicy

    @classmethod
    def of(cls, settings: CheckpointSettings, latent_frames: int) -> Plan:
        if settings.causal:
            return cls(settings.chunk_frames, settings.cache(), settings.policy())
        return cls(latent_frames, CacheConfig(None, 0), ContextPolicy.last_step())  # the whole video is one chunk

    def cache_bytes(
        self, settings: CheckpointSettings, config: WanConfig, shape: Sequence[int], dtype: torch.dtype, conditions: int
    ) -> int:
        if not settings.causal:
            return 0
        batch, _, frames, height, width = shape
        return conditions * self.cache.bytes(
            config,
            tokens_per_frame=tokens_per_frame(height, width),
            total_frames=math.ceil(frames / self.chunk_frames) * self.chunk_frames,
            batch=batch,
            element_size=dtype.itemsize,
        )


def prepare_sampling(
    settings: CheckpointSettings,
    config: WanConfig,
    conditions: int,
    frames: int,
    decoding: float,
    executor: Any,
    model: Any,
    noise_shape: Sequence[int],
    conds: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """PREPARE_SAMPLING wrapper: memory for one chunk, the KV cache and decoding, where ComfyUI would count the video.

    ComfyUI sizes memory by a latent's shape alone, so all else is told as that many latent frames more.
    """
    batch, channels, _, height, width = noise_shape
    plan, base = Plan.of(settings, frames), model.model
    dtype = base.manual_cast_dtype or base.get_dtype()
    whole = (batch, channels, frames, height, width)
    more = max(0, plan.cache_bytes(settings, config, whole, dtype, conditions) - idle_bytes(model)) + decoding
    one_frame = base.memory_required([batch, channels, 1, height, width])
    shape = [batch, channels, plan.chunk_frames + math.ceil(more / one_frame), height, width]
    return executor(model, shape, conds, *args, **kwargs)


def check_room(cache_bytes: int, plan: Plan, frames: int, device: torch.device) -> None:
    """ValueError where a cache without a window is larger than the device."""
    there = comfy_bridge.total_memory(device)
    if plan.cache.window_frames is None and cache_bytes > there:
        raise ValueError(
            f"this model attends to the whole video: its keys and values of {frames} latent frames take "
            f"{cache_bytes / 1e9:.0f} GB, and {device} has {there / 1e9:.0f} GB. Make the video shorter, or choose "
            "the preset longlive, which has the steps of self-forcing and a window; in custom, set window to 12 and "
            "sink to 3"
        )
