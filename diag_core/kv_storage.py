"""The memory that keys and values lie in, apart from what they mean: a cache has its own, or is lent some.

Legend: B batch, S tokens that storage has room for, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Two caches of one layout can use the same storage, one after the other."""

    layers: int
    batch: int
    tokens: int
    """S: of all slots"""
    unturned_tokens: int
    """of the sink, where its keys are kept unrotated as well; else 0"""
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        a_token = self.layers * self.batch * self.heads * self.head_dim * self.dtype.itemsize
        return a_token * (2 * self.tokens + self.unturned_tokens)


class KVStorage:
    """Keys and values [B,S,H,K] of every layer, and the sink's unrotated keys where there are any."""

    def __init__(self, layout: Layout) -> None:
        def zeros(tokens: int) -> list[Tensor]:
            shape = (layout.batch, tokens, layout.heads, layout.head_dim)
            return [torch.zeros(shape, dtype=layout.dtype, device=layout.device) for _ in range(layout.layers)]

        self.layout = layout
        # Storage outlives the call that makes it, which may run in inference mode (ComfyUI) while a later one does not.
        with torch.inference_mode(False):
            # Zeros, not garbage: a slot is never read before it is written, but NaNs would survive a masked kernel.
            self.k, self.v = zeros(layout.tokens), zeros(layout.tokens)
            self.sink_k = zeros(layout.unturned_tokens) if layout.unturned_tokens else []
