"""Arithmetic of sampling, counted from sizes: what a time is to be judged against.

Counts are floating-point operations of the DiT's matrix products and convolutions; a multiply-add is two. Norms, gates,
rotations and noise move memory rather than compute and are left out, as is the video decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import PATCH, CacheConfig, ContextPolicy, WanConfig
from ..diagonal_schedule import DiagonalSchedule
from ..geometry import chunk_spans


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations by kind; sums with +, repeats with *."""

    linear: int = 0
    """Linear layers of the blocks that run over video tokens."""
    self_attention: int = 0
    cross_attention: int = 0
    rest: int = 0
    """Patch embedding, head, time embedding, and what is done once a prompt."""

    @property
    def total(self) -> int:
        return self.linear + self.self_attention + self.cross_attention + self.rest

    def __add__(self, other: Work) -> Work:
        return Work(
            linear=self.linear + other.linear,
            self_attention=self.self_attention + other.self_attention,
            cross_attention=self.cross_attention + other.cross_attention,
            rest=self.rest + other.rest,
        )

    def __rmul__(self, times: int) -> Work:
        return self * times

    def __mul__(self, times: int) -> Work:
        return Work(
            linear=self.linear * times,
            self_attention=self.self_attention * times,
            cross_attention=self.cross_attention * times,
            rest=self.rest * times,
        )


def forward_work(model: WanConfig, tokens: int, attended_tokens: int) -> Work:
    """One forward of one sample with the prompt's keys in the cache.

    Args:
        tokens: of the chunk.
        attended_tokens: of the sink, the recent frames and the chunk together.
    """
    dim, layers = model.dim, model.num_layers
    # Self-attention has q, k, v, o; cross-attention q and o (its k and v are the prompt's); the FFN two.
    of_block = 6 * dim * dim + 2 * dim * model.ffn_dim
    patch = math.prod(PATCH)
    ends = tokens * dim * patch * (model.in_dim + model.out_dim)
    time = dim * (model.freq_dim + 7 * dim)
    return Work(
        linear=2 * tokens * of_block * layers,
        self_attention=4 * tokens * attended_tokens * dim * layers,
        cross_attention=4 * tokens * model.text_len * dim * layers,
        rest=2 * (ends + time),
    )


def prompt_work(model: WanConfig) -> Work:
    """What one prompt costs before the first forward: its embedding, and keys and values of every layer."""
    embedding = model.dim * (model.text_dim + model.dim)
    keys_values = 2 * model.dim * model.dim * model.num_layers
    return Work(rest=2 * model.text_len * (embedding + keys_values))


def forwards_of_chunk(schedule: DiagonalSchedule, policy: ContextPolicy, chunk: int) -> int:
    """Denoising steps of sampled chunk `chunk`, and its commit where that takes a forward."""
    sigmas = schedule.sigmas(chunk)
    return len(sigmas) + (0 if policy.reuses(sigmas[-1]) else 1)


def video_work(
    model: WanConfig,
    schedule: DiagonalSchedule,
    policy: ContextPolicy,
    cache: CacheConfig,
    *,
    latent_frames: int,
    tokens_per_frame: int,
    chunk_frames: int = 3,
    batch: int = 1,
) -> Work:
    """A whole video from one prompt without guidance. A trimmed last chunk counts whole: it is sampled whole."""
    work = prompt_work(model)
    for chunk, span in enumerate(chunk_spans(latent_frames, chunk_frames)):
        end = span.start + span.length
        attended = end if cache.window_frames is None else min(end, cache.window_frames)
        forward = forward_work(model, span.length * tokens_per_frame, attended * tokens_per_frame)
        work = work + forward * forwards_of_chunk(schedule, policy, chunk)
    return work * batch
