"""Training over a whole video at once: which tokens a chunk would have seen had it been sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from diag_core import CacheConfig


def frame_mask(frames: int, chunk_frames: int, cache: CacheConfig) -> Tensor:
    """[F,F] bool: True where latent frame (row) attends to latent frame (column).

    A chunk attends to itself in both directions, to the sink, and to the recent frames that the window leaves room for.
    """
    index = torch.arange(frames)
    chunk_end = (index // chunk_frames + 1) * chunk_frames  # first frame after the row's chunk
    past = index[None, :] < chunk_end[:, None]
    if cache.window_frames is None:
        return past
    recent = index[None, :] >= chunk_end[:, None] - (cache.window_frames - cache.sink_frames)
    return past & (recent | (index[None, :] < cache.sink_frames))


def token_mask(frames: int, tokens_per_frame: int, chunk_frames: int, cache: CacheConfig) -> Tensor:
    """[N,N] bool for the tokens of `frames` latent frames; see `frame_mask`."""
    mask = frame_mask(frames, chunk_frames, cache)
    return mask.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)
