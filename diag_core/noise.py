"""Where the sampler's noise comes from.

Every draw is keyed by what it is for (the latent frame, or the chunk and step), never by what was drawn before. So a
longer video begins like a shorter one, a video resumed elsewhere goes on the same, and samples of a batch do not mix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import index
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Standard normal noise, float32 on the CPU unless a source says otherwise; shapes are [B,C,f,H,W]."""

    def initial(self, start_frame: int, shape: Sequence[int]) -> Tensor:
        """What the chunk at latent frame `start_frame` starts from."""

    def renoise(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        """Added after step `step` (0-based) of sampled chunk `chunk`."""

    def context(self, chunk: int, shape: Sequence[int]) -> Tensor:
        """For committing a finished chunk with noise. Given chunks are -1, -2, ... in their order."""


class SeededNoise:
    """Noise from a seed, drawn on the CPU so that a seed gives the same video on every device.

    Args:
        seed: 0 or more. Sample b of a batch is drawn from `seed + b`, alone, so it equals the video of that seed. A
            sequence gives each sample its own seed.
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        self.seed: int | tuple[int, ...] = tuple(map(index, seed)) if isinstance(seed, Sequence) else index(seed)
        for value in [self.seed] if isinstance(self.seed, int) else self.seed:
            if value < 0:
                raise ValueError(f"a seed is 0 or more, got {value}")

    def _seeds(self, batch: int) -> Sequence[int]:
        if isinstance(self.seed, int):
            return range(self.seed, self.seed + batch)
        if len(self.seed) != batch:
            raise ValueError(f"{len(self.seed)} seeds for a batch of {batch}")
        return self.seed

    def _draw(self, shape: Sequence[int], *key: str | int) -> Tensor:
        samples = []
        for seed in self._seeds(shape[0]):
            digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            samples.append(torch.randn(tuple(shape[1:]), generator=generator))
        return torch.stack(samples)

    def initial(self, start_frame: int, shape: Sequence[int]) -> Tensor:
        """Drawn frame by frame: a latent frame's noise does not depend on the chunk size."""
        batch, channels, frames, height, width = shape
        one = (batch, channels, height, width)
        return torch.stack([self._draw(one, "initial", start_frame + f) for f in range(frames)], dim=2)

    def renoise(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        return self._draw(shape, "renoise", chunk, step)

    def context(self, chunk: int, shape: Sequence[int]) -> Tensor:
        return self._draw(shape, "context", chunk)
