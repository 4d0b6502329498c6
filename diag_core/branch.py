"""The model under one prompt timeline, with the cache that belongs to it: one of them, or two with guidance.

Legend: B batch, C latent channels, f latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import ContextPolicy, SwitchPolicy, WanConfig
from .denoising import commit_chunk
from .kv_cache import ALL_STALE, RING_STALE, KVCache
from .noise_schedule import add_noise
from .state import Finished
from .timeline import Conditioning, Timeline


class CausalModel(Protocol):
    """What sampling asks of a model: `WanDiT`, or a stock model behind an adapter."""

    @property
    def config(self) -> WanConfig: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
    ) -> Tensor: ...


class Branch:
    """Forwards of one timeline, and what a prompt switch does to its cache.

    Args:
        context_noise: finished chunk -> noise [B,C,f,H,W] to commit it with.
        on_recache: called after each forward that recomputes a chunk, with the chunk's number.
    """

    def __init__(
        self,
        model: CausalModel,
        timeline: Timeline,
        cache: KVCache,
        *,
        policy: ContextPolicy,
        switch: SwitchPolicy,
        context_noise: Callable[[Finished], Tensor],
        on_recache: Callable[[int], None],
    ) -> None:
        self.model, self.timeline, self.cache = model, timeline, cache
        # What is recomputed has no last denoising step to reuse.
        self.policy, self.switch = replace(policy, reuse_last_step=False), switch
        self.context_noise, self.on_recache = context_noise, on_recache
        self.now: Conditioning | None = None

    def flow(self, x: Tensor, sigma: float, start_frame: int) -> Tensor:
        """x [B,C,f,H,W] at `sigma` -> flow; the cache holds these latent frames' keys and values afterwards."""
        assert self.now is not None, "condition() comes first"
        timestep = torch.full((x.shape[0],), 1000.0 * sigma, dtype=torch.float32, device=x.device)
        return self.model(x, timestep, self.now.context, cache=self.cache, start_frame=start_frame)

    def condition(self, start_frame: int, chunk_frames: int, history: Sequence[Finished]) -> Conditioning:
        """Takes the prompt of the chunk at `start_frame`, recomputing the window where a switch asks for it.

        Args:
            history: finished chunks that are still attended to, oldest first.
        """
        before, self.now = self.now, self.timeline.at(start_frame, chunk_frames)
        if before is None or before.key != self.now.key:
            self.cache.drop_text()
        wanted = self.now.recache and self.switch.recache != "off"
        if history and (wanted or self.cache.stale):
            # An interrupted one is made good here, whatever prompt goes on: all follows from the history.
            sink = self.switch.sink or self.cache.stale == ALL_STALE
            self.cache.stale = ALL_STALE if sink else RING_STALE
            self._recache(history, sink=sink)
        return self.now

    def _recache(self, history: Sequence[Finished], *, sink: bool) -> None:
        """Commits the window, and the sink if asked, anew under the present prompt."""
        cache = self.cache
        sink_end = cache.origin + cache.sink
        in_ring = max(sink_end, history[-1].end_frame - cache.ring)  # its oldest latent frame
        window = [f for f in history if f.end_frame > in_ring]
        begin = max(window[0].start_frame, sink_end) if window else sink_end
        if sink and cache.sink:
            in_sink = [f for f in history if f.start_frame < sink_end]
            cache.rewind(cache.origin)
            if self.switch.recache != "joint" and begin <= in_sink[-1].end_frame:
                # Nothing between sink and window is gone: whole chunks, also one that lies in both.
                begin, window = cache.origin, list(history)
            else:
                for finished in in_sink:
                    self._recommit(finished, slice(0, min(finished.end_frame, sink_end) - finished.start_frame))
        if not window:
            return
        cache.rewind(begin)
        if self.switch.recache == "joint":
            self._recommit_jointly(window, max(begin, window[-1].end_frame - cache.ring))
            return
        for finished in window:
            self._recommit(finished, slice(max(0, begin - finished.start_frame), None))

    def _recommit(self, finished: Finished, frames: slice) -> None:
        start = finished.start_frame + (frames.start or 0)
        commit_chunk(
            lambda x, sigma: self.flow(x[:, :, frames], sigma, start),
            finished.latents,
            self.policy,
            finished.last_sigma,
            lambda: self.context_noise(finished),
        )
        self.on_recache(finished.chunk)
        self.cache.advance()

    def _recommit_jointly(self, window: Sequence[Finished], begin: int) -> None:
        """One bidirectional forward over the window's latent frames from `begin` on (LongLive)."""
        self.cache.rewind(begin)
        # One timestep for all: the level of the newest chunk.
        sigma = self.policy.level(window[-1].last_sigma)
        noisy = [add_noise(f.latents, self.context_noise(f), sigma) if sigma else f.latents for f in window]
        self.flow(torch.cat(noisy, dim=2)[:, :, begin - window[0].start_frame :], sigma, begin)
        self.on_recache(window[-1].chunk)
        self.cache.advance()


@contextmanager
def undone_on_error(branches: Sequence[Branch]) -> Iterator[None]:
    """Forgets an interrupted chunk: what it wrote lies in slots that nothing before it attends to."""
    try:
        yield
    except BaseException:
        for branch in branches:
            branch.cache.abandon()
        raise
