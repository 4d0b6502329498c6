"""Samples a video chunk by chunk: denoise, commit, go on.

Legend: B batch, C latent channels, f latent frames of a chunk, F of the video, H and W latent rows and columns.
Latents are float32 throughout; the model is given its own dtype.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import CacheConfig, ContextPolicy, SwitchPolicy, WanConfig
from .diagonal_schedule import DiagonalSchedule
from .geometry import chunk_spans, given_spans, tokens_per_frame
from .kv_cache import KVCache
from .noise import NoiseSource
from .noise_schedule import add_noise, x0_from_flow
from .state import Finished, SamplerState
from .timeline import Conditioning, Timeline, as_timeline

STEPS = ("renoise", "euler")


class CausalModel(Protocol):
    """What the sampler asks of a model: `WanDiT`, or a stock model behind an adapter."""

    @property
    def config(self) -> WanConfig: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
    ) -> Tensor: ...


@dataclass(frozen=True)
class Chunk:
    """A finished chunk.

    Attributes:
        index: number in the schedule; given chunks are -1, -2, ...
        start_frame: latent frame of the whole video it starts at.
        latents: [B,C,f,H,W] float32; the last one is trimmed to the length asked for.
        steps: denoising steps it took; 0 for given latents.
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


Predict = Callable[[Tensor, float], Tensor]


def denoise_chunk(
    predict: Predict, noise: Tensor, sigmas: Sequence[float], *, step: str = "renoise", renoise: Callable[[int], Tensor]
) -> Tensor:
    """From noise to a clean estimate x0 over a step list.

    Args:
        predict: (x [B,C,f,H,W], sigma) -> flow.
        noise: [B,C,f,H,W], the chunk at the first sigma.
        sigmas: descending, without the final 0. A shorter list ends early with the estimate of its last step.
        step: "renoise" predicts x0 and adds fresh noise to the next level (distilled models); "euler" follows the flow
            (undistilled ones, whose samples re-noising would wash out).
        renoise: step index -> fresh noise.
    """
    x = noise
    for i, sigma in enumerate(sigmas):
        flow = predict(x, sigma)
        if i + 1 == len(sigmas):
            return x0_from_flow(x, flow, sigma)
        if step == "euler":
            x = x + (sigmas[i + 1] - sigma) * flow.to(x.dtype)
        else:
            x = add_noise(x0_from_flow(x, flow, sigma), renoise(i), sigmas[i + 1])
    raise ValueError("a step list needs at least one step")


def commit_chunk(
    write: Callable[[Tensor, float], object],
    latents: Tensor,
    policy: ContextPolicy,
    last_sigma: float,
    noise: Callable[[], Tensor],
) -> None:
    """Leaves a finished chunk's keys and values in the cache as `policy` says: by nothing at all, or by one forward.

    Args:
        write: (x, sigma) -> a forward that writes the cache.
        latents: x0 [B,C,f,H,W].
        last_sigma: level of the step whose keys are in the cache now.
        noise: called only when noise is needed.
    """
    if policy.reuses(last_sigma):
        return
    sigma = policy.level(last_sigma)
    write(latents if sigma == 0 else add_noise(latents, noise(), sigma), sigma)


class _Branch:
    """The model under one prompt timeline, with the cache that belongs to it."""

    def __init__(self, model: CausalModel, timeline: Timeline, cache: KVCache) -> None:
        self.model, self.timeline, self.cache = model, timeline, cache
        self.context = timeline.entries[0][1]

    def flow(self, x: Tensor, sigma: float, start_frame: int) -> Tensor:
        timestep = torch.full((x.shape[0],), 1000.0 * sigma, dtype=torch.float32, device=x.device)
        return self.model(x, timestep, self.context, cache=self.cache, start_frame=start_frame)


class _Sampler:
    """The loop's parts, bound to one video."""

    def __init__(
        self,
        model: CausalModel,
        schedule: DiagonalSchedule,
        noise: NoiseSource,
        policy: ContextPolicy,
        switch: SwitchPolicy,
        branches: list[_Branch],
        state: SamplerState,
        shape: tuple[int, int, int, int],
        chunk_frames: int,
        step: str,
        cfg: float,
        on_forward: Callable[[Forward], None] | None,
    ) -> None:
        self.model, self.schedule, self.noise = model, schedule, noise
        self.policy, self.switch, self.branches, self.state = policy, switch, branches, state
        self.batch, self.channels, self.height, self.width = shape
        self.chunk_frames, self.step, self.cfg = chunk_frames, step, cfg
        self.on_forward = on_forward

    def _shape(self, frames: int) -> tuple[int, int, int, int, int]:
        return self.batch, self.channels, frames, self.height, self.width

    def _place(self, noise: Tensor) -> Tensor:
        return noise.to(self.model.device, torch.float32, non_blocking=True)

    def _context_noise(self, finished: Finished) -> Tensor:
        return self._place(self.noise.context(finished.chunk, self._shape(finished.latents.shape[2])))

    def _done(self, forward: Forward) -> None:
        if self.on_forward is not None:
            self.on_forward(forward)

    def _advance(self) -> None:
        for branch in self.branches:
            branch.cache.advance()

    @torch.no_grad()
    def given(self, latents: Tensor, number: int, start_frame: int) -> Chunk:
        """Commits latents that were given rather than sampled."""
        with self._undone_on_error():
            self._condition(start_frame)
            finished = Finished(-1 - number, start_frame, latents, self.schedule.sigmas(self.state.chunk)[-1])
            self._commit(finished, self.branches, "commit")
            self._advance()
        self._finish(finished)
        return Chunk(finished.chunk, start_frame, latents, 0)

    @torch.no_grad()
    def sample(self) -> Chunk:
        """The next chunk: denoised, committed and recorded in the state."""
        chunk, start = self.state.chunk, self.state.frame
        with self._undone_on_error():
            sigmas = self.schedule.sigmas(chunk, self._condition(start).since_switch)
            count = 0

            def predict(x: Tensor, sigma: float) -> Tensor:
                nonlocal count
                flow = self.branches[0].flow(x, sigma, start)
                if len(self.branches) > 1:
                    other = self.branches[1].flow(x, sigma, start)
                    flow = other + self.cfg * (flow - other)
                count += 1
                self._done(Forward("step", chunk, count, len(sigmas)))
                return flow

            shape = self._shape(self.chunk_frames)
            latents = denoise_chunk(
                predict,
                self._place(self.noise.initial(start, shape)),
                sigmas,
                step=self.step,
                renoise=lambda i: self._place(self.noise.renoise(chunk, i, shape)),
            )
            finished = Finished(chunk, start, latents, sigmas[-1])
            if not self.policy.reuses(sigmas[-1]):
                self._commit(finished, self.branches, "commit")
            self._advance()
        self._finish(finished)
        self.state.chunk += 1
        return Chunk(chunk, start, latents, len(sigmas))

    def _undone_on_error(self) -> Any:
        return _Abandon([branch.cache for branch in self.branches])

    def _commit(
        self, finished: Finished, branches: Sequence[_Branch], kind: str, *, frames: slice = slice(None)
    ) -> None:
        """One forward that writes `finished` (or some of its latent frames) into the caches of `branches`."""
        start = finished.start_frame + (frames.start or 0)

        def write(x: Tensor, sigma: float) -> None:
            for branch in branches:
                branch.flow(x[:, :, frames], sigma, start)

        always = dataclasses.replace(self.policy, reuse_last_step=False)
        commit_chunk(write, finished.latents, always, finished.last_sigma, lambda: self._context_noise(finished))
        self._done(Forward(kind, finished.chunk))

    def _finish(self, finished: Finished) -> None:
        state = self.state
        state.history.append(finished)
        state.frame = finished.end_frame
        sink, ring = self.branches[0].cache.held_frames()
        state.history = [f for f in state.history if f.start_frame < sink.stop or (ring and f.end_frame > ring.start)]

    # -- prompt switches ----------------------------------------------------------------------------------------------

    def _condition(self, start_frame: int) -> Conditioning:
        """Gives every branch its prompt for the chunk there, recomputing the window where a switch asks for it."""
        first: Conditioning | None = None
        for i, branch in enumerate(self.branches):
            now = branch.timeline.at(start_frame, self.chunk_frames)
            if self.state.conditioned_on[i] != now.key:
                branch.cache.drop_text()
            branch.context = now.context
            if now.recache and self.state.history and self.switch.recache != "off":
                self._recache(branch)
            self.state.conditioned_on[i] = now.key
            first = first or now
        assert first is not None
        return first

    def _recache(self, branch: _Branch) -> None:
        """Commits the window anew under the branch's present prompt.

        Everything follows from the history, never from the cache: after an interruption it is done again with the same
        result.
        """
        cache, history = branch.cache, self.state.history
        sink_end = cache.origin + cache.sink
        in_ring = max(sink_end, self.state.frame - cache.ring)  # its oldest latent frame
        window = [f for f in history if f.end_frame > in_ring]
        begin = max(window[0].start_frame, sink_end) if window else sink_end
        if self.switch.sink and cache.sink:
            in_sink = [f for f in history if f.start_frame < sink_end]
            cache.rewind(cache.origin)
            if self.switch.recache == "chunks" and begin <= in_sink[-1].end_frame:
                # Nothing between sink and window is gone: whole chunks, also one that lies in both.
                begin, window = cache.origin, history
            else:
                for finished in in_sink:
                    self._recommit(branch, finished, slice(0, min(finished.end_frame, sink_end) - finished.start_frame))
        if not window:
            return
        cache.rewind(begin)
        if self.switch.recache == "joint":
            self._recommit_jointly(branch, window, max(begin, window[-1].end_frame - cache.ring))
            return
        for finished in window:
            self._recommit(branch, finished, slice(max(0, begin - finished.start_frame), None))

    def _recommit(self, branch: _Branch, finished: Finished, frames: slice) -> None:
        self._commit(finished, [branch], "recache", frames=frames)
        branch.cache.advance()

    def _recommit_jointly(self, branch: _Branch, window: Sequence[Finished], begin: int) -> None:
        """One bidirectional forward over the window's latent frames from `begin` on."""
        branch.cache.rewind(begin)
        noisy = []
        for finished in window:
            sigma = self.policy.level(finished.last_sigma)
            noise = self._context_noise(finished) if sigma else finished.latents
            noisy.append(add_noise(finished.latents, noise, sigma))
        x = torch.cat(noisy, dim=2)[:, :, begin - window[0].start_frame :]
        # One timestep for all: the level of the newest chunk.
        branch.flow(x, self.policy.level(window[-1].last_sigma), begin)
        self._done(Forward("recache", window[-1].chunk))
        branch.cache.advance()


class _Abandon:
    """Leaves the caches as they were before the chunk when it is interrupted."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for cache in self.caches:
                cache.abandon()


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
    branches = [_Branch(model, timeline, own) for timeline, own in zip(timelines, caches, strict=True)]
    sampler = _Sampler(
        model, schedule, noise, policy, switch, branches, state, (batch, channels, height, width), chunk_frames, step,
        cfg, on_forward,
    )  # fmt: skip
    end = first_frame + num_latent_frames
    if not state.started:
        state.chunk, state.frame, state.handed_out = first_chunk, first_frame, first_frame
        state.settings = settings
    return _chunks(sampler, initial_latents, given, first_frame, end)


def _chunks(
    sampler: _Sampler, initial_latents: Tensor | None, given: int, first_frame: int, end: int
) -> Iterator[Chunk]:
    state = sampler.state
    if state.handed_out < state.frame and state.handed_out < end:  # what an earlier, shorter length trimmed
        last = state.history[-1]
        latents = last.latents[:, :, state.handed_out - last.start_frame : end - last.start_frame]
        chunk = Chunk(last.chunk, state.handed_out, latents, 0)
        state.handed_out += latents.shape[2]
        yield chunk
    for number, span in enumerate(given_spans(given, sampler.chunk_frames)):
        start = first_frame + span.start
        if start < state.frame:
            continue
        assert initial_latents is not None
        latents = initial_latents[:, :, span.start : span.start + span.length]
        chunk = sampler.given(latents.to(sampler.model.device, torch.float32), number, start)
        state.handed_out = state.frame
        yield dataclasses.replace(chunk, latents=latents)
    while state.frame < end:
        chunk = sampler.sample()
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
    state.conditioned_on = [None] * branches
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
