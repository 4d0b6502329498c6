"""The student's own video, as it would be sampled, with the gradient of one step of each chunk.

The sampler's primitives do all of it, so training and inference cannot drift apart; only where gradients flow is
decided here. A number u in [0,1) is drawn once an iteration, and a chunk with n steps exits at step floor(u n). Steps
before it carry no gradient. The exit step does, and its x0 is the output: it attends to a detached snapshot of the
cache, since a forward with gradient must not write what autograd has saved, and since a recomputation under activation
checkpointing would see other keys. Then the chunk is committed without gradient.

Legend: B samples, C latent channels, F latent frames of the video, f of a chunk, H and W latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, NoiseSource, WanDiT
from diag_core.checkpoint import CheckpointSettings
from diag_core.denoising import commit_chunk, denoise_chunk
from diag_core.geometry import Span, chunk_spans
from diag_core.kv_cache import KVCache
from diag_core.transfer import to_device

from .precision import flow_of

Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How the student samples while it is trained: as its checkpoint will ask the sampler to."""

    schedule: DiagonalSchedule
    policy: ContextPolicy
    cache: CacheConfig
    chunk_frames: int = 3
    precision: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, settings: CheckpointSettings, precision: torch.dtype) -> RolloutConfig:
        return cls(
            schedule=settings.diagonal_schedule(), policy=settings.policy(), cache=settings.cache(),
            chunk_frames=settings.chunk_frames, precision=precision,
        )  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What a forward was given."""

    x: Tensor
    """[B,C,f,H,W]"""
    sigma: float


@dataclass(frozen=True)
class Rollout:
    """A video of exit-step estimates."""

    latents: Tensor
    """[B,C,F,H,W] float32; with a graph to the model's weights where it was made with gradients"""
    exits: tuple[Given, ...]
    """the exit step of each chunk"""
    commits: tuple[Given, ...]
    """what each chunk but the last was committed as: all that later chunks see of it"""


def exit_step(u: float | None, steps: int) -> int:
    """floor(u steps) for u in [0,1); None is the last step."""
    if u is None:
        return steps - 1
    assert 0 <= u < 1, u
    return int(u * steps)


def rollout(
    model: WanDiT,
    context: Tensor,
    config: RolloutConfig,
    *,
    noise: NoiseSource,
    shape: Shape,
    u: float | None = None,
    gradients: bool,
) -> Rollout:
    """Samples a video up to the exit steps.

    Args:
        context: prompt embeddings [B,L,text_dim].
        shape: of the video, (B,C,F,H,W).
        u: in [0,1), which step of each chunk is the exit; None takes the last ones, as `diag_core.generate` does.
        gradients: whether exit steps carry gradient. Without, no forward is spent on it.

    Raises:
        ValueError: F is no whole number of chunks.
    """
    batch, channels, frames, height, width = shape
    if frames % config.chunk_frames:
        raise ValueError(
            f"{frames} latent frames are no whole number of chunks of {config.chunk_frames}: train on videos whose "
            "length is a multiple of the chunk"
        )
    cache = KVCache(
        model.config, config.cache, batch=batch, rows=height // 2, columns=width // 2, total_frames=frames,
        dtype=config.precision, device=model.device,
    )  # fmt: skip
    spans = chunk_spans(frames, config.chunk_frames)
    latents: list[Tensor] = []
    exits: list[Given] = []
    commits: list[Given] = []
    for chunk, span in enumerate(spans):
        part = (batch, channels, span.length, height, width)
        run = _ChunkRun(model, context, config, cache, noise, chunk, span, part)
        sigmas = config.schedule.sigmas(chunk)
        steps = exit_step(u, len(sigmas)) + 1
        latents.append(run.denoise(sigmas[:steps], gradients=gradients))
        exits.append(run.given[-1])
        if chunk + 1 < len(spans):  # nothing sees the last one
            run.commit(latents[-1].detach(), sigmas[-1], early=steps < len(sigmas))
            commits.append(run.given[-1])
    return Rollout(torch.cat(latents, dim=2), tuple(exits), tuple(commits))


class _ChunkRun:
    """The forwards of one chunk; `given` lists what they were given, in order."""

    def __init__(
        self,
        model: WanDiT,
        context: Tensor,
        config: RolloutConfig,
        cache: KVCache,
        noise: NoiseSource,
        chunk: int,
        span: Span,
        shape: Shape,
    ) -> None:
        self.model, self.context, self.config, self.cache = model, context, config, cache
        self.noise, self.chunk, self.span, self.shape = noise, chunk, span, shape
        self.given: list[Given] = []

    def denoise(self, sigmas: tuple[float, ...], *, gradients: bool) -> Tensor:
        """x0 of the last of `sigmas`, with its gradient if asked."""

        def predict(x: Tensor, sigma: float) -> Tensor:
            at_exit = len(self.given) + 1 == len(sigmas)
            return self._read(x, sigma) if gradients and at_exit else self._write(x, sigma)

        return denoise_chunk(
            predict,
            self._placed(self.noise.initial(self.span.start, self.shape)),
            sigmas,
            renoise=lambda step: self._placed(self.noise.renoise(self.chunk, step, self.shape)),
        )

    def commit(self, x0: Tensor, last_sigma: float, *, early: bool) -> None:
        """Leaves the chunk in the cache, as the policy says of a list that ends at `last_sigma`."""
        policy = replace(self.config.policy, reuse_last_step=False) if early else self.config.policy
        committed = commit_chunk(
            self._write, x0, policy, last_sigma, lambda: self._placed(self.noise.context(self.chunk, self.shape))
        )
        if not committed and not self.cache.placed:
            # The last step's keys are the commit, but it had gradients and so wrote none.
            self._write(self.given[-1].x, last_sigma)
        self.cache.advance()

    def _read(self, x: Tensor, sigma: float) -> Tensor:
        """A forward with gradient, which writes nothing."""
        self.given.append(Given(x, sigma))
        return self._flow(x, sigma, self.cache.snapshot(self.span.start, self.span.length))

    @torch.no_grad()
    def _write(self, x: Tensor, sigma: float) -> Tensor:
        """A forward without gradient, whose keys and values the cache holds afterwards."""
        self.given.append(Given(x, sigma))
        return self._flow(x, sigma, self.cache)

    def _flow(self, x: Tensor, sigma: float, past: object) -> Tensor:
        return flow_of(
            self.model, x, sigma, self.context, precision=self.config.precision, cache=past, start_frame=self.span.start
        )

    def _placed(self, noise: Tensor) -> Tensor:
        return to_device(noise, self.model.device, torch.float32)
