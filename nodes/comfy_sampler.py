"""Diagonal sampling as the function of a ComfyUI sampler: one loop for the Diagonal Sampler and SamplerCustomAdvanced.

Legend: B batch, C latent channels, F latent frames of the video, H and W latent rows and columns. Latents are
normalised (model space) inside the sampler's function and in the VAE's own space in a LATENT.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..diag_core import SamplerState, SeededNoise, SwitchPolicy, Take, Timeline
from ..diag_core.chunk_loop import Chunk, Forward
from ..diag_core.geometry import chunk_spans
from ..diag_core.live import LivePrompts, LiveTimeline, Switch, follow
from ..diag_core.pipeline import OnForward
from ..diag_core.sampler import stream_branches
from ..diag_core.settings import CheckpointSettings
from . import comfy_bridge
from .choice import UNKNOWN, SamplingChoice, describe, widget_values
from .comfy_conditions import KEY, Kept, StockRun
from .comfy_fast import idle_bytes
from .comfy_model import check_model
from .comfy_plan import Plan, check_room, prepare_sampling
from .comfy_progress import Progress
from .live import listening
from .preview import Previewer
from .prompt_timeline import TIMELINE_KEY
from .record import EXTEND_KEY, RECORD_KEY, Record, splice

log = logging.getLogger(__name__)

_PREPARE = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING


Chunks = Callable[[OnForward], Iterator[Chunk]]
"""what is to be called after each forward -> the chunks of the video"""


@dataclass(frozen=True)
class Streaming:
    """A video that is handed out chunk by chunk and not kept.

    Attributes:
        latent_frames: of the video, which the latent that is sampled into does not tell.
        memory: bytes that decoding takes beside sampling.
        consume: (chunks, what shows the JPEG preview that is made when called) -> None; runs through the chunks.
    """

    latent_frames: int
    memory: float
    consume: Callable[[Chunks, Callable[[Any], None]], None]


@dataclass(frozen=True)
class LiveInput:
    """Where prompts come from while the video is sampled, and who is told when one has taken effect."""

    clip: Any
    slots: Sequence[str]
    fps: float
    on_switch: Callable[[Switch], None] = lambda switch: None


@dataclass
class Job:
    """What one call of the sampler is asked beyond what ComfyUI hands it, and what it leaves behind.

    Attributes:
        extends: how the first latent frames came about, where a video is extended.
        batch_index: of each sample, as a LATENT may carry it: sample i is drawn as number batch_index[i].
        record, switches: filled by the run; a streamed video leaves no record.
        told: what the run tells its node: "diagdistill", the settings in a line, and "diagdistill_model", those of the
            checkpoint as the node's widgets have them, where it says any.
    """

    choice: SamplingChoice
    extends: Record | None = None
    batch_index: Sequence[int] | None = None
    streaming: Streaming | None = None
    live: LiveInput | None = None
    record: Record | None = None
    switches: Sequence[Switch] = ()
    told: dict[str, list[Any]] = field(default_factory=dict)


def make_sampler(choice: SamplingChoice) -> Any:
    """A SAMPLER for SamplerCustomAdvanced. Its sigmas are the schedule's own, whatever it is handed."""

    def sample(*args: Any, **kwargs: Any) -> Tensor:
        return sample_video(*args, job=Job(choice), **kwargs)

    return comfy.samplers.KSAMPLER(sample)


def sample_latent(
    model: Any,
    positive: list[Any],
    negative: list[Any] | None,
    latent: dict[str, Any],
    *,
    seed: int,
    choice: SamplingChoice,
    streaming: Streaming | None = None,
    live: LiveInput | None = None,
) -> tuple[dict[str, Any], Job]:
    """MODEL, CONDITIONING and LATENT -> the sampled LATENT (of a streamed video, nothing of use), and how it was made.

    Raises:
        ValueError: inputs that do not fit each other or the model; says what to change.
    """
    samples = comfy_bridge.check_latent(latent)
    config = check_model(model)
    settings = choice.resolve(comfy_bridge.settings_of(model))
    if settings.cfg != 1.0 and negative is None:
        raise ValueError(
            f"guidance (CFG {settings.cfg:g}) needs a negative prompt: connect one (an empty prompt will do), or set "
            "the preset to custom and cfg to 1"
        )
    conditions = len(positive) + (len(negative or []) if settings.cfg != 1.0 else 0)
    if not settings.causal and (streaming or live):
        raise ValueError(
            "this model makes the whole video at once: it can neither be streamed nor take prompts meanwhile; choose a "
            "causal checkpoint"
        )
    model = model.clone()
    frames = samples.shape[2] if streaming is None else streaming.latent_frames
    decoding = _decoding_bytes(streaming, Previewer(settings.text_encoder, model.load_device), samples)
    prepare = partial(prepare_sampling, settings, config, conditions, frames, decoding)
    model.add_wrapper_with_key(_PREPARE, KEY, prepare)
    extends = latent.get(EXTEND_KEY)
    job = Job(choice, extends, latent.get("batch_index"), streaming, live)
    out = comfy.sample.sample_custom(
        model,
        torch.zeros_like(samples),  # the noise is drawn chunk by chunk
        settings.cfg,
        comfy.samplers.KSAMPLER(sample_video, {"job": job}),
        torch.tensor([*settings.diagonal_schedule().sigmas(0), 0.0]),
        positive,
        negative or [],
        samples,
        noise_mask=None if extends else latent.get("noise_mask"),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    # The mask of Extend Video says what is there; now all of it is.
    done = {EXTEND_KEY, "noise_mask"} if extends else {EXTEND_KEY}
    kept = {key: value for key, value in latent.items() if key not in done}
    return {**kept, "samples": out, RECORD_KEY: job.record}, job


def sample_video(
    model_k: Any,
    x: Tensor,
    sigmas: Tensor,
    *,
    extra_args: dict[str, Any],
    callback: Any = None,
    disable: bool | None = None,
    job: Job,
) -> Tensor:
    """The sampler function: everything of `x` [B,C,F,H,W] but its shape is drawn anew, chunk by chunk.

    `sigmas`, the noise in `x` and `callback` are ComfyUI's for a whole video and not used: the schedule, the seed and
    a progress of our own take their place.
    """
    guider = model_k.inner_model
    own = comfy_bridge.settings_of(guider.model_patcher)
    settings = job.choice.resolve(own)
    began = time.monotonic()
    run = StockRun(guider, extra_args["model_options"], extra_args.get("seed"), causal=settings.causal)
    batch, channels, frames, height, width = x.shape
    frames = frames if job.streaming is None else job.streaming.latent_frames
    plan = Plan.of(settings, frames)
    timelines = [condition.timeline(plan.chunk_frames, batch) for condition in run.conditions]
    given, takes = _beginning(model_k, extra_args.get("denoise_mask"), run, plan, settings, job, frames)
    if job.extends is not None and len(job.extends.timelines) == len(timelines):
        at = job.extends.latent_frames
        timelines = [
            splice(old.to(x.device), new, at) for old, new in zip(job.extends.timelines, timelines, strict=True)
        ]
    for condition, timeline in zip(run.conditions, timelines, strict=True):
        condition.switches = len(timeline.entries) > 1
    whole = (batch, channels, frames, height, width)
    cache_bytes = plan.cache_bytes(settings, run.config, whole, run.dtype, len(timelines))
    check_room(cache_bytes, plan, frames, x.device)
    previewer = Previewer(settings.text_encoder, x.device)
    decoding = _decoding_bytes(job.streaming, previewer, x)
    one_chunk = [batch, channels, plan.chunk_frames, height, width]
    switch = next((c.cond[TIMELINE_KEY].switch for c in run.conditions if TIMELINE_KEY in c.cond), SwitchPolicy())
    seed = int(extra_args.get("seed") or 0)
    progress = Progress(_count(settings, plan, frames, given, takes, timelines[0]), disable)
    state = SamplerState()
    begun = False

    def memory() -> float:
        # The cache is allocated by the first forward. Until then, a model that makes way for the text encoder and comes
        # back must leave room for it.
        cache = 0 if begun else max(0, cache_bytes - idle_bytes(guider.model_patcher))
        return float(cache + decoding + guider.inner_model.memory_required(one_chunk))

    def chunks(live: LivePrompts | None, on_forward: OnForward) -> Iterator[Chunk]:
        def done(forward: Forward) -> None:
            nonlocal begun
            begun = True
            on_forward(forward)
            progress.forward(forward)

        if live is not None:
            _make_live(run, timelines)
        with warnings.catch_warnings(record=True) as said:
            stream = stream_branches(
                list(zip(run.conditions, timelines, strict=True)),
                settings.diagonal_schedule(),
                guide=run,
                noise=SeededNoise(seed if job.batch_index is None else [seed + int(i) for i in job.batch_index]),
                num_latent_frames=frames,
                height=height,
                width=width,
                cache=plan.cache,
                policy=plan.policy,
                chunk_frames=plan.chunk_frames,
                initial_latents=given,
                step=settings.step,
                switch=switch,
                state=state,
                replay=takes,
                on_forward=done,
            )
        for warning in said:
            log.warning("Diagonal Sampler: %s", warning.message)
        if live is None:
            return stream
        lively = [t for t in timelines if isinstance(t, LiveTimeline)]
        return follow(stream, live, lively, state, plan.chunk_frames)

    out, taken = torch.empty_like(x, dtype=torch.float32), list(takes)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        stack.callback(run.close)
        live = None
        if job.live is not None:
            live = stack.enter_context(
                listening(
                    job.live.clip, job.live.slots, job.live.fps, guider.model_patcher, x.device,
                    batch=batch,
                    memory=memory,
                    reloaded=run.reloaded,
                    keep_past=job.streaming is None,
                    on_switch=job.live.on_switch,
                )
            )  # fmt: skip
            job.switches = live.log
        # After the prompts are encoded: a text encoder takes what is free.
        comfy_bridge.free_memory(
            cache_bytes - idle_bytes(guider.model_patcher) + decoding, x.device, keep=guider.model_patcher
        )
        if job.streaming is not None:
            job.streaming.consume(partial(chunks, live), progress.picture)
        else:
            for chunk in chunks(live, lambda forward: None):
                out[:, :, chunk.start_frame : chunk.start_frame + chunk.latents.shape[2]] = chunk.latents
                if chunk.take is not None and chunk.steps:
                    taken.append(_on_cpu(chunk.take))
                progress.picture(partial(previewer.picture, chunk.latents))
    if settings.causal and job.streaming is None:
        on_cpu = tuple(timeline.to("cpu") for timeline in timelines)
        job.record = Record(plan.chunk_frames, frames, None if given is None else given.cpu(), tuple(taken), on_cpu)
    count = -(-frames // plan.chunk_frames)
    status = f"{describe(settings, count)} \u00b7 {time.monotonic() - began:.1f} s"
    log.info("Diagonal Sampler: %s", status)
    if job.choice.guesses(own):
        status = f"{UNKNOWN} \u00b7 {status}"
        log.warning("Diagonal Sampler: %s", UNKNOWN)
    job.told = {"diagdistill": [status]} | ({} if own is None else {"diagdistill_model": [widget_values(own)]})
    return out


def _decoding_bytes(streaming: Streaming | None, previewer: Previewer, latents: Tensor) -> float:
    """Memory for pictures beside sampling: those of a streamed video, or previews."""
    return previewer.memory(*latents.shape[-2:]) if streaming is None else streaming.memory


def _make_live(run: StockRun, timelines: list[Timeline]) -> None:
    """In place: the positive prompts can be changed from now on."""
    for number, condition in enumerate(run.conditions):
        if condition.role == "positive":
            timelines[number] = LiveTimeline(timelines[number].entries, timelines[number].blend_chunks)
            condition.switches = True  # what ComfyUI hands the model is the first prompt


def _beginning(
    model_k: Any, mask: Tensor | None, run: StockRun, plan: Plan, settings: CheckpointSettings, job: Job, frames: int
) -> tuple[Tensor | None, tuple[Take, ...]]:
    """What is not to be sampled: latents that are given, and chunks that were sampled before."""
    latents = model_k.latent_image
    if job.extends is not None:
        if not settings.causal:
            raise ValueError(
                "this model makes the whole video at once and cannot extend one; choose a causal checkpoint"
            )
        job.extends.check(latents, plan.chunk_frames)
        given = job.extends.given
        return None if given is None else given.to(latents.device), job.extends.takes
    if mask is None:
        return None, ()
    free = mask.amax(dim=(0, 1, 3, 4)) > 0
    leading = int(free.int().argmax()) if bool(free.any()) else frames
    if leading == frames:
        raise ValueError(
            "the noise mask keeps every latent frame, so there is nothing to sample; make the latent longer"
        )
    # Whole chunks, or one more where the first is a single picture; the rest of the kept ones is held in place instead.
    count = leading if leading % plan.chunk_frames in (0, 1) else leading - leading % plan.chunk_frames
    count = count if settings.causal else 0
    if bool((mask[:, :, count:] < 1).any()):
        run.kept = Kept(latents, mask)
    return (latents[:, :, :count] if count else None), ()


def _on_cpu(take: Take) -> Take:
    last = None if take.last_input is None else take.last_input.cpu()
    return Take(take.latents.cpu(), last, take.last_sigma)


def _count(
    settings: CheckpointSettings,
    plan: Plan,
    frames: int,
    given: Tensor | None,
    takes: Sequence[Take],
    timeline: Timeline,
) -> int:
    """Forwards of the whole video; recomputations at prompt switches are added as they come."""
    schedule = settings.diagonal_schedule()
    given_frames = 0 if given is None else given.shape[2]
    total, chunk = 0, 0
    for span in chunk_spans(frames, plan.chunk_frames, given_frames):
        if span.start < given_frames:
            total += 1
            continue
        sigmas = schedule.sigmas(chunk, timeline.at(span.start, plan.chunk_frames).since_switch)
        total += 1 if chunk < len(takes) else len(sigmas) + (not plan.policy.reuses(sigmas[-1]))
        chunk += 1
    return total
