"""Samples a video chunk by chunk: denoise, commit, go on.

Legend: B batch, C latent channels, f latent frames of a chunk, F of the video, H and W latent rows and columns. Latents
are float32 throughout; the model is given its own dtype.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .branch import Branch, CausalModel, undone_on_error
from .config import DEFAULT_KV_NOISE, CacheConfig, ContextPolicy, SwitchPolicy
from .denoising import STEPS, commit_chunk, denoise_chunk
from .diagonal_schedule import DiagonalSchedule
from .geometry import chunk_spans, given_spans, tokens_per_frame
from .kv_cache import FRESH, KVCache
from .noise import NoiseSource
from .noise_schedule import sigma_from_schedule_timestep
from .state import Finished, SamplerState
from .timeline import Timeline, as_timeline


@dataclass(frozen=True)
class Chunk:
    """A finished chunk.

    Attributes:
        index: number in the schedule; given chunks are -1, -2, ...
        start_frame: latent frame of the whole video it starts at.
        latents: [B,C,f,H,W] float32; the last one is trimmed to the length asked for.
        steps: denoising steps it took; 0 for given latents, and for the rest of a chunk that an earlier call trimmed.
    """

    index: int
    start_frame: int
    latents: Tensor
    steps: int


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
class _Video:
    """The loop's parts, bound to one video."""

    model: CausalModel
    schedule: DiagonalSchedule
    noise: NoiseSource
    policy: ContextPolicy
    state: SamplerState
    size: tuple[int, int, int, int]
    """batch, latent channels, rows and columns"""
    chunk_frames: int
    step: str
    cfg: float
    on_forward: Callable[[Forward], None]
    branches: list[Branch] = dataclasses.field(default_factory=list)

    def _shape(self, frames: int) -> tuple[int, int, int, int, int]:
        batch, channels, height, width = self.size
        return batch, channels, frames, height, width

    def _place(self, noise: Tensor) -> Tensor:
        if self.model.device.type == "cuda" and noise.device.type == "cpu":
            noise = noise.pin_memory()  # only pinned copies do not wait
        return noise.to(self.model.device, torch.float32, non_blocking=True)

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

            def predict(x: Tensor, sigma: float) -> Tensor:
                nonlocal steps_done
                flow = self.branches[0].flow(x, sigma, start)
                if len(self.branches) > 1:
                    other = self.branches[1].flow(x, sigma, start)
                    flow = other + self.cfg * (flow - other)
                steps_done += 1
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
            # A copy: whoever is handed the chunk may edit it in place.
            finished = Finished(chunk, start, latents.clone(), sigmas[-1])
            self._commit(finished, self.policy)
        self._finish(finished)
        self.state.chunk += 1
        return Chunk(chunk, start, latents, len(sigmas))

    def _condition(self, start_frame: int) -> int | None:
        """Gives every branch its prompt; returns how many chunks ago that of the first one switched."""
        now = [b.condition(start_frame, self.chunk_frames, self.state.history) for b in self.branches]
        return now[0].since_switch

    def _commit(self, finished: Finished, policy: ContextPolicy) -> None:
        def write(x: Tensor, sigma: float) -> None:
            for branch in self.branches:
                branch.flow(x, sigma, finished.start_frame)

        noise = lambda: self.context_noise(finished)  # noqa: E731
        if commit_chunk(write, finished.latents, policy, finished.last_sigma, noise):
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


def stream_chunks(
    model: CausalModel,
    context: Tensor | Timeline,
    schedule: DiagonalSchedule,
    *,
    noise: NoiseSource,
    num_latent_frames: int,
    height: int,
    width: int,
    cache: CacheConfig | None = None,
    policy: ContextPolicy | None = None,
    chunk_frames: int = 3,
    initial_latents: Tensor | None = None,
    step: str = "renoise",
    cfg: float = 1.0,
    negative: Tensor | Timeline | None = None,
    first_chunk: int = 0,
    first_frame: int = 0,
    switch: SwitchPolicy | None = None,
    state: SamplerState | None = None,
    on_forward: Callable[[Forward], None] | None = None,
) -> Iterator[Chunk]:
    """Yields the chunks of a video as they are finished.

    Args:
        model: the causal DiT.
        context: prompt embeddings [B,L,text_dim], or a timeline of them.
        schedule: chunk -> step list.
        noise: where all noise comes from.
        num_latent_frames: length, given latents included; sampled to the next whole chunk and trimmed.
        height, width: latent rows and columns, even.
        cache: window, sink and positions.
        policy: what later chunks see of a finished one; `ContextPolicy.last_step()` by default.
        chunk_frames: latent frames denoised together.
        initial_latents: [B,C,F0,H,W], committed first and yielded as they came. F0 is a multiple of `chunk_frames`, or
            one more when the first is a single image's latent frame.
        step: "renoise" for distilled models, "euler" for undistilled ones.
        cfg: classifier-free guidance; anything but 1 needs `negative` and doubles the work.
        negative: as `context`.
        first_chunk, first_frame: where a continuation stands in the schedule, noise, timeline and positions of the
            whole video.
        switch: what a prompt switch recomputes.
        state: filled as chunks finish. One that holds progress already is continued, with the same result as one run;
            only what has not been yielded before is yielded.
        on_forward: called after each forward of the model. An exception it raises ends the sampling; the state then
            stands where the last finished chunk left it.

    Raises:
        ValueError: arguments that do not fit each other, the model or the state.
    """
    cache = cache or CacheConfig()
    policy = policy or ContextPolicy.last_step()
    switch = switch or SwitchPolicy()
    state = SamplerState() if state is None else state
    timelines = _timelines(model, context, negative, cfg)
    batch, channels = timelines[0].batch_size, model.config.in_dim
    tokens_per_frame(height, width)  # refuses sizes that do not split into tokens
    if step not in STEPS:
        raise ValueError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
    if first_chunk < 0 or first_frame < 0:
        raise ValueError(f"first_chunk and first_frame count from 0, got {first_chunk} and {first_frame}")
    given = 0 if initial_latents is None else initial_latents.shape[2]
    spans = chunk_spans(num_latent_frames, chunk_frames, given)
    if initial_latents is not None:
        if initial_latents.shape != (batch, channels, given, height, width):
            raise ValueError(
                f"initial_latents must be [{batch},{channels},F,{height},{width}], got {list(initial_latents.shape)}"
            )
        if given % chunk_frames and not state.started:
            warnings.warn(
                "the first given latent frame stands alone (a single image): checkpoints trained on whole chunks have "
                "not seen this; repeating the image to fill a chunk may look better",
                stacklevel=2,
            )
    if cache.window_frames is not None:
        for span in spans:
            if span.length - max(0, cache.sink_frames - span.start) > cache.window_frames - cache.sink_frames:
                raise ValueError(
                    f"a chunk of {span.length} latent frames does not fit a window of {cache.window_frames} with a "
                    f"sink of {cache.sink_frames}: give a larger window, a smaller sink or smaller chunks"
                )
    settings = {
        "model": model.config.to_dict(),
        "schedule": schedule.to_json(),
        "cache": dataclasses.asdict(cache),
        "policy": dataclasses.asdict(policy),
        "size": [batch, channels, height, width],
        "chunk_frames": chunk_frames,
        "given": given,
        "step": step,
        "cfg": cfg,
        "first": [first_chunk, first_frame],
    }
    sampled = sum(span.length for span in spans)
    caches = _caches(state, settings, model, cache, len(timelines), batch, height, width, sampled)
    video = _Video(
        model=model,
        schedule=schedule,
        noise=noise,
        policy=policy,
        state=state,
        size=(batch, channels, height, width),
        chunk_frames=chunk_frames,
        step=step,
        cfg=cfg,
        on_forward=on_forward or (lambda _: None),
    )
    video.branches = [
        Branch(
            model,
            timeline,
            own,
            policy=policy,
            switch=switch,
            context_noise=video.context_noise,
            on_recache=lambda chunk: video.on_forward(Forward("recache", chunk)),
        )
        for timeline, own in zip(timelines, caches, strict=True)
    ]
    end = first_frame + num_latent_frames
    if not state.started:
        state.chunk, state.frame, state.handed_out = first_chunk, first_frame, first_frame
        state.settings = settings
    return _chunks(video, initial_latents, given, first_frame, end)


def _chunks(video: _Video, initial_latents: Tensor | None, given: int, first_frame: int, end: int) -> Iterator[Chunk]:
    state = video.state
    if state.handed_out < state.frame and state.handed_out < end:  # what an earlier, shorter length trimmed
        last = state.history[-1]
        latents = last.latents[:, :, state.handed_out - last.start_frame : end - last.start_frame]
        chunk = Chunk(last.chunk, state.handed_out, latents, 0)
        state.handed_out += latents.shape[2]
        yield chunk
    for number, span in enumerate(given_spans(given, video.chunk_frames)):
        start = first_frame + span.start
        if start < state.frame:
            continue
        assert initial_latents is not None
        latents = initial_latents[:, :, span.start : span.start + span.length]
        chunk = video.given(latents.to(video.model.device, torch.float32), number, start)
        state.handed_out = state.frame
        yield dataclasses.replace(chunk, latents=latents)
    while state.frame < end:
        chunk = video.sample()
        keep = min(chunk.latents.shape[2], end - chunk.start_frame)
        state.handed_out = chunk.start_frame + keep
        yield dataclasses.replace(chunk, latents=chunk.latents[:, :, :keep])


def _timelines(
    model: CausalModel, context: Tensor | Timeline, negative: Tensor | Timeline | None, cfg: float
) -> list[Timeline]:
    timelines = [as_timeline(context)]
    if cfg != 1.0:
        if negative is None:
            raise ValueError(f"cfg {cfg} needs a negative prompt (an empty one will do); cfg 1 needs none")
        timelines.append(as_timeline(negative))
    for timeline in timelines:
        timeline.require(batch_size=timelines[0].batch_size, device=model.device, text_dim=model.config.text_dim)
    return timelines


def _caches(
    state: SamplerState,
    settings: dict[str, Any],
    model: CausalModel,
    config: CacheConfig,
    branches: int,
    batch: int,
    height: int,
    width: int,
    total_frames: int,
) -> list[KVCache]:
    """The state's caches, made or restored; refuses a state of another video."""
    if state.started:
        before, now = state.settings or {}, json.loads(json.dumps(settings))
        changed = [name for name in now if json.loads(json.dumps(before)).get(name) != now[name]]
        if changed:
            raise ValueError(
                f"the state is of a video with another {changed[0]} ({before.get(changed[0])}, now {now[changed[0]]}); "
                "continue with the settings it began with"
            )
    grown = config.window_frames is None and any(cache.capacity < total_frames for cache in state.caches)
    if state.caches and not grown:
        return state.caches
    saved = [cache.state_dict() for cache in state.caches] or state.saved_caches
    state.caches = [
        KVCache(
            model.config, config, batch=batch, rows=height // 2, columns=width // 2, total_frames=total_frames,
            dtype=model.dtype, device=model.device,
        )
        for _ in range(branches)
    ]  # fmt: skip
    for cache, contents in zip(state.caches, saved, strict=bool(saved)):
        cache.load_state_dict(contents)
    if saved:
        state.history = [
            dataclasses.replace(f, latents=f.latents.to(model.device, torch.float32)) for f in state.history
        ]
    state.saved_caches = []
    return state.caches


def generate(
    model: CausalModel,
    context: Tensor | Timeline,
    schedule: DiagonalSchedule,
    *,
    noise: NoiseSource,
    num_latent_frames: int,
    height: int,
    width: int,
    **options: Any,
) -> Tensor:
    """All latents of a video at once, [B,C,F,H,W]; arguments as `stream_chunks`.

    Continuing a `state`, it returns only what had not been handed out before.
    """
    chunks = stream_chunks(
        model,
        context,
        schedule,
        noise=noise,
        num_latent_frames=num_latent_frames,
        height=height,
        width=width,
        **options,
    )
    latents = [chunk.latents.to(model.device, torch.float32) for chunk in chunks]
    if not latents:
        raise ValueError(f"the state has handed out all {num_latent_frames} latent frames already; ask for more")
    return torch.cat(latents, dim=2)
