"""What a sampled LATENT carries so that it can be extended: the video goes on as if it had been longer from the start.

Legend: B batch, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diag_core import Take, Timeline

RECORD_KEY = "diagdistill_record"
EXTEND_KEY = "diagdistill_extend"


@dataclass(frozen=True, eq=False)
class Record:
    """How the latent frames so far came about; all tensors are normalised latents on the CPU.

    Attributes:
        given: [B,C,F,H,W] that the video began with, None where there were none.
        takes: one a sampled chunk.
        timelines: the prompts of each condition.
        length: latent frames that were handed out; fewer than were sampled where the video was trimmed.
    """

    chunk_frames: int
    length: int
    given: Tensor | None
    takes: tuple[Take, ...]
    timelines: tuple[Timeline, ...]

    @property
    def given_frames(self) -> int:
        return 0 if self.given is None else self.given.shape[2]

    @property
    def latent_frames(self) -> int:
        """All that was sampled, before the video was trimmed to its length."""
        return self.given_frames + len(self.takes) * self.chunk_frames

    def check(self, latents: Tensor, chunk_frames: int) -> None:
        """That `latents` [B,C,F,H,W] still begin with what was sampled.

        Raises:
            ValueError: another chunk size, or latents that were changed in between.
        """
        if chunk_frames != self.chunk_frames:
            raise ValueError(
                f"the video was sampled in chunks of {self.chunk_frames} latent frames and goes on in the same: set "
                f"chunk_frames to {self.chunk_frames}, not {chunk_frames}"
            )
        start = self.latent_frames - self.chunk_frames
        last = self.takes[-1].latents[:, :, : self.length - start]
        there = latents[:, :, start : self.length].to(last)
        # Not exactly: there are two changes of the latent space in between.
        if there.shape != last.shape or not torch.allclose(there, last, rtol=1e-3, atol=1e-3):
            raise ValueError(
                "the latent was changed after it was sampled, so it cannot be continued: connect the Diagonal "
                "Sampler's LATENT directly. To go on from other latents, use Start Image Latent with "
                "the last pictures"
            )


def splice(before: Timeline, after: Timeline, at: int) -> Timeline:
    """The prompts `before` latent frame `at` and those `after` it, as one timeline.

    Where `after` says the same of the time before `at`, it is returned as it is: one longer run. Otherwise a difference
    at `at` is a prompt switch there.
    """
    before = before.to(after.device, after.entries[0][1].dtype)
    early = [(start, context) for start, context in before.entries if start < at]
    claimed = [(start, context) for start, context in after.entries if start < at]
    if len(early) == len(claimed) and all(
        a[0] == b[0] and _same(a[1], b[1]) for a, b in zip(early, claimed, strict=True)
    ):
        return after
    now = [context for start, context in after.entries if start <= at][-1]
    entries = [*early, (at, now), *((start, context) for start, context in after.entries if start > at)]
    joined: list[tuple[int, Tensor]] = []
    for start, context in entries:
        known = next((other for _, other in joined if _same(other, context)), context)
        joined.append((start, known))
    return Timeline(joined, after.blend_chunks)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))
