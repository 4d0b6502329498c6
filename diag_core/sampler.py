"""Samples a video chunk by chunk: denoise, commit, go on.

Legend: B batch, C latent channels, F latent frames of the video, H and W latent rows and columns. Latents are float32
throughout; the model is given its own dtype.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .branch import Branch, CausalModel
from .chunk_loop import Chunk, ChunkLoop, Forward, Take
from .config import CacheConfig, ContextPolicy, SwitchPolicy
from .denoising import STEPS
from .diagonal_schedule import DiagonalSchedule
from .geometry import chunk_spans, given_spans, tokens_per_frame
from .guidance import ClassifierFree, Guide
from .kv_cache import KVCache
from .noise import NoiseSource
from .state import SamplerState
from .timeline import Timeline, as_timeline

__all__ = ["Chunk", "ClassifierFree", "Forward", "Guide", "Take", "generate", "stream_branches", "stream_chunks"]


def stream_chunks(
    model: CausalModel,
    context: Tensor | Timeline,
    schedule: DiagonalSchedule,
    *,
    noise: NoiseSource,
    num_latent_frames: int | None,
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
    replay: Sequence[Take] = (),
    on_forward: Callable[[Forward], None] | None = None,
) -> Iterator[Chunk]:
    """Yields the chunks of a video as they are finished.

    Args:
        model: the causal DiT.
        context: prompt embeddings [B,L,text_dim], or a timeline of them.
        schedule: chunk -> step list.
        noise: where all noise comes from.
        num_latent_frames: length, given latents included; sampled to the next whole chunk and trimmed. None goes on
            until the iterator is closed, which takes a window.
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
        replay: the first sampled chunks as an earlier run took them (`Chunk.take`): yielded as they are, at the cost of
            one forward each instead of their steps. What follows is as it would have been in that run.
        on_forward: called after each forward of the model. An exception it raises ends the sampling; the state then
            stands where the last finished chunk left it.

    Raises:
        ValueError: arguments that do not fit each other, the model or the state.
    """
    timelines = _timelines(model, context, negative, cfg)
    return stream_branches(
        [(model, timeline) for timeline in timelines],
        schedule,
        guide=ClassifierFree(cfg),
        noise=noise,
        num_latent_frames=num_latent_frames,
        height=height,
        width=width,
        cache=cache,
        policy=policy,
        chunk_frames=chunk_frames,
        initial_latents=initial_latents,
        step=step,
        first_chunk=first_chunk,
        first_frame=first_frame,
        switch=switch,
        state=state,
        replay=replay,
        on_forward=on_forward,
    )


def stream_branches(
    branches: Sequence[tuple[CausalModel, Timeline]],
    schedule: DiagonalSchedule,
    *,
    guide: Guide,
    noise: NoiseSource,
    num_latent_frames: int | None,
    height: int,
    width: int,
    cache: CacheConfig | None = None,
    policy: ContextPolicy | None = None,
    chunk_frames: int = 3,
    initial_latents: Tensor | None = None,
    step: str = "renoise",
    first_chunk: int = 0,
    first_frame: int = 0,
    switch: SwitchPolicy | None = None,
    state: SamplerState | None = None,
    replay: Sequence[Take] = (),
    on_forward: Callable[[Forward], None] | None = None,
) -> Iterator[Chunk]:
    """`stream_chunks` for any number of conditions, joined by a guide of the caller's.

    Args:
        branches: a model and the timeline it is given, one pair a condition; the timelines fit the model.
        guide: joins their flows at every denoising step. Commits and recomputations run each branch by itself.
    """
    cache = cache or CacheConfig()
    policy = policy or ContextPolicy.last_step()
    switch = switch or SwitchPolicy()
    state = SamplerState() if state is None else state
    model, timelines = branches[0][0], [timeline for _, timeline in branches]
    batch, channels = timelines[0].batch_size, model.config.in_dim
    tokens_per_frame(height, width)  # refuses sizes that do not split into tokens
    if step not in STEPS:
        raise ValueError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
    if first_chunk < 0 or first_frame < 0:
        raise ValueError(f"first_chunk and first_frame count from 0, got {first_chunk} and {first_frame}")
    given = 0 if initial_latents is None else initial_latents.shape[2]
    if num_latent_frames is None and cache.window_frames is None:
        raise ValueError("a video without end needs a window; a cache of everything would grow without end too")
    # Without end, the given chunks and one more tell all there is to check.
    spans = chunk_spans(given + 1 if num_latent_frames is None else num_latent_frames, chunk_frames, given)
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
    for number, take in enumerate(replay):
        if take.latents.shape != (batch, channels, chunk_frames, height, width):
            raise ValueError(
                f"replay, chunk {number}: its latents are {list(take.latents.shape)}, this video's chunks are "
                f"{[batch, channels, chunk_frames, height, width]}; replay with the sizes it was sampled with"
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
        "cfg": guide.cfg,
        "first": [first_chunk, first_frame],
    }
    sampled = sum(span.length for span in spans)
    caches = _caches(state, settings, model, cache, len(timelines), batch, height, width, sampled)
    video = ChunkLoop(
        device=model.device,
        schedule=schedule,
        noise=noise,
        policy=policy,
        state=state,
        size=(batch, channels, height, width),
        chunk_frames=chunk_frames,
        step=step,
        guide=guide,
        on_forward=on_forward or (lambda _: None),
    )
    video.branches = [
        Branch(
            own_model,
            timeline,
            own_cache,
            policy=policy,
            switch=switch,
            context_noise=video.context_noise,
            on_recache=lambda chunk: video.on_forward(Forward("recache", chunk)),
        )
        for (own_model, timeline), own_cache in zip(branches, caches, strict=True)
    ]
    end = sys.maxsize if num_latent_frames is None else first_frame + num_latent_frames
    if not state.started:
        state.chunk, state.frame, state.handed_out = first_chunk, first_frame, first_frame
        state.settings = settings
    return _chunks(video, initial_latents, given, first_frame, end, replay[state.chunk - first_chunk :])


def _chunks(
    video: ChunkLoop,
    initial_latents: Tensor | None,
    given: int,
    first_frame: int,
    end: int,
    replay: Sequence[Take],
) -> Iterator[Chunk]:
    try:
        yield from _all_chunks(video, initial_latents, given, first_frame, end, replay)
    finally:
        video.branches.clear()  # they know the video: in a circle, its caches would wait for Python's collector


def _all_chunks(
    video: ChunkLoop,
    initial_latents: Tensor | None,
    given: int,
    first_frame: int,
    end: int,
    replay: Sequence[Take],
) -> Iterator[Chunk]:
    state, takes = video.state, iter(replay)
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
        chunk = video.given(latents.to(video.device, torch.float32), number, start)
        state.handed_out = state.frame
        yield dataclasses.replace(chunk, latents=latents)
    while state.frame < end:
        take = next(takes, None)
        chunk = video.sample() if take is None else video.replay(take)
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
