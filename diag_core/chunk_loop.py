"""One video's loop over chunks: condition, denoise, commit, record.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns. Latents are float32
throughout; the model is given its own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .branch import Branch, undone_on_error
from .config import DEFAULT_KV_NOISE, ContextPolicy
from .denoising import commit_chunk, denoise_chunk
from .diagonal_schedule import DiagonalSchedule
from .guidance import Guide
from .kv_cache import FRESH
from .noise import NoiseSource
from .noise_schedule import sigma_from_schedule_timestep
from .state import Finished, SamplerState
from .transfer import to_device


@dataclass(frozen=True)
class Take:
    """What is needed to put a sampled chunk's keys and values back without taking its steps again.

    Attributes:
        latents: [B,C,f,H,W] float32, the whole chunk even where the video was trimmed.
        last_input: what its last denoising step was given, whose keys are the commit; None where a forward of its own
            committed the chunk.
        last_sigma: level of that step.
    """

    latents: Tensor
    last_input: Tensor | None
    last_sigma: float


@dataclass(frozen=True)
class Chunk:
    """A finished chunk.

    Attributes:
        index: number in the schedule; given chunks are -1, -2, ...
        start_frame: latent frame of the whole video it starts at.
        latents: [B,C,f,H,W] float32; the last one is trimmed to the length asked for.
        steps: denoising steps it took; 0 for given and replayed latents, and for the rest of a chunk that an earlier
            call trimmed.
        take: what replays it; None for given latents, and for that rest.
    """

    index: int
    start_frame: int
    latents: Tensor
    steps: int
    take: Take | None = None


@dataclass(frozen=True)
class Forward:
    """Progress: one forward of the model is done (both branches, with guidance).

    Attributes:
        kind: "step", "commit" or "recache".
        chunk: number of the chunk, as in `Chunk`.
        step, steps: of a denoising step, 1-based; 0 otherwise.
    """

    kind: str
    chunk: int
    step: int = 0
    steps: int = 0


@dataclass
class ChunkLoop:
    """The loop's parts, bound to one video."""

    device: torch.device
    schedule: DiagonalSchedule
    noise: NoiseSource
    policy: ContextPolicy
    state: SamplerState
    size: tuple[int, int, int, int]
    """batch, latent channels, rows and columns"""
    chunk_frames: int
    step: str
    guide: Guide
    on_forward: Callable[[Forward], None]
    branches: list[Branch] = field(default_factory=list)

    def _shape(self, frames: int) -> tuple[int, int, int, int, int]:
        batch, channels, height, width = self.size
        return batch, channels, frames, height, width

    def _place(self, noise: Tensor) -> Tensor:
        return to_device(noise, self.device, torch.float32)

    def context_noise(self, finished: Finished) -> Tensor:
        return self._place(self.noise.context(finished.chunk, self._shape(finished.latents.shape[2])))

    @torch.no_grad()
    def given(self, latents: Tensor, number: int, start_frame: int) -> Chunk:
        """Commits latents that were given rather than sampled."""
        with undone_on_error(self.branches):
            self._condition(start_frame)
            # A one-step list ends at pure noise, at which nothing of what is given would be seen.
            last = self.schedule.sigmas(self.state.chunk)[-1]
            level = last if last < 1 else sigma_from_schedule_timestep(DEFAULT_KV_NOISE, self.schedule.shift)
            finished = Finished(-1 - number, start_frame, latents.clone(), level)
            self._commit(finished, replace(self.policy, reuse_last_step=False))  # there was no last step
        self._finish(finished)
        return Chunk(finished.chunk, start_frame, latents, 0)

    @torch.no_grad()
    def sample(self) -> Chunk:
        """The next chunk: denoised, committed and recorded in the state."""
        chunk, start = self.state.chunk, self.state.frame
        with undone_on_error(self.branches):
            sigmas = self.schedule.sigmas(chunk, self._condition(start))
            steps_done = 0
            last_input: Tensor | None = None

            def predict(x: Tensor, sigma: float) -> Tensor:
                nonlocal steps_done, last_input
                flows = [partial(branch.flow, sigma=sigma, start_frame=start) for branch in self.branches]
                flow = self.guide(x, sigma, flows, start_frame=start)
                steps_done, last_input = steps_done + 1, x
                self.on_forward(Forward("step", chunk, steps_done, len(sigmas)))
                return flow

            shape = self._shape(self.chunk_frames)
            latents = denoise_chunk(
                predict,
                self._place(self.noise.initial(start, shape)),
                sigmas,
                step=self.step,
                renoise=lambda i: self._place(self.noise.renoise(chunk, i, shape)),
            )
            reused = self.policy.reuses(sigmas[-1])
            # Copies: whoever is handed the chunk may edit it in place.
            take = Take(latents.clone(), last_input if reused else None, sigmas[-1])
            finished = Finished(chunk, start, take.latents, sigmas[-1])
            self._commit(finished, self.policy)
        return self._finish_sampled(finished, Chunk(chunk, start, latents, len(sigmas), take))

    @torch.no_grad()
    def replay(self, take: Take) -> Chunk:
        """The next chunk as it was sampled before: its keys and values are computed anew, its steps are not."""
        chunk, start = self.state.chunk, self.state.frame
        latents = self._place(take.latents)
        with undone_on_error(self.branches):
            self._condition(start)
            finished = Finished(chunk, start, latents.clone(), take.last_sigma)
            if self.policy.reuses(take.last_sigma) and take.last_input is not None:
                for branch in self.branches:
                    branch.flow(self._place(take.last_input), take.last_sigma, start)
                self.on_forward(Forward("commit", chunk))
            else:
                self._commit(finished, replace(self.policy, reuse_last_step=False))
        return self._finish_sampled(finished, Chunk(chunk, start, latents, 0, take))

    def _finish_sampled(self, finished: Finished, chunk: Chunk) -> Chunk:
        self._finish(finished)
        self.state.chunk += 1
        return chunk

    def _condition(self, start_frame: int) -> int | None:
        """Gives every branch its prompt; returns how many chunks ago that of the first one switched."""
        now = [b.condition(start_frame, self.chunk_frames, self.state.history) for b in self.branches]
        return now[0].since_switch

    def _commit(self, finished: Finished, policy: ContextPolicy) -> None:
        def write(x: Tensor, sigma: float) -> None:
            for branch in writers:
                branch.flow(x, sigma, finished.start_frame)

        # A guide may have left out a branch at every step: it has nothing to reuse.
        writers = (
            [b for b in self.branches if not b.cache.placed] if policy.reuses(finished.last_sigma) else self.branches
        )
        if not writers:
            return
        noise = lambda: self.context_noise(finished)  # noqa: E731
        commit_chunk(write, finished.latents, replace(policy, reuse_last_step=False), finished.last_sigma, noise)
        self.on_forward(Forward("commit", finished.chunk))

    def _finish(self, finished: Finished) -> None:
        state = self.state
        for branch in self.branches:
            branch.cache.advance()
            branch.cache.stale = FRESH
        state.history.append(finished)
        state.frame = finished.end_frame
        sink, ring = self.branches[0].cache.held_frames()
        state.history = [f for f in state.history if f.start_frame < sink.stop or (ring and f.end_frame > ring.start)]
