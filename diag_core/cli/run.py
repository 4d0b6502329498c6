"""Carries out a plan: loads the models once, then makes one video after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..demo_text import DemoTextEncoder
from ..fast import accelerated, accelerated_decoder
from ..geometry import pixel_frames
from ..live import Switch
from ..mp4_writer import Mp4Writer
from ..replacing import replacing
from ..sinks import FrameSink, PngSequence
from ..text import TextEncoder
from ..timeline_text import format_timeline, one_line
from ..video_reader import read_image, read_video
from .interactive import Console, live_prompts
from .interrupt import deferred_interrupt
from .models import encode, load_model, load_vae, umt5_encoder
from .pipeline import Progress, make_video, start_latents
from .plan import Plan
from .progress import ProgressBar
from .request import VideoRequest
from .saved import Recording, latents_path

_INTERRUPTED = 130


def run_plan(plan: Plan) -> int:
    """Returns the exit code: 0, or 130 after Ctrl-C.

    Raises:
        ValueError, OSError: a file that cannot be used, or no memory left on the GPU.
    """
    if plan.device.type == "cuda" and plan.device.index is not None:
        torch.cuda.set_device(plan.device)  # what names no device, such as a stream, is to be there too
    try:
        return _run(plan)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"there is not enough memory on {plan.device}: try a smaller --size or --window, or the tiny VAE ({error})"
        ) from error


def _run(plan: Plan) -> int:
    recording = Recording.load(plan.resume) if plan.resume else None
    if recording is not None and plan.requests[0].latent_frames <= recording.state.handed_out:
        raise ValueError(
            f"{plan.resume} holds {recording.state.handed_out} latent frames already: ask for more than that with "
            "--seconds, --frames or --latent-frames"
        )
    if recording is None and plan.save_state:
        recording = Recording()
    prompts = [prompt for request in plan.requests for prompt in request.prompts()]
    # The text encoder first, and then dropped: on many GPUs it does not fit beside the model. Where prompts come while
    # the video is made it stays, on the CPU.
    embeddings, encoder = {}, None
    if plan.text_encoder is not None:
        where = torch.device("cpu") if plan.interactive else plan.device
        encoder = umt5_encoder(plan.text_encoder, plan.embedding_cache, device=where)
        embeddings = encode(encoder, prompts)
        encoder = encoder if plan.interactive else None
    loaded = load_model(
        plan.checkpoint,
        dtype=plan.dtype,
        device=plan.device,
        attention=plan.attention,
        lora=plan.lora,
        lora_strength=plan.lora_strength,
    )
    attention = "auto" if plan.attention == "auto" else loaded.model.attend
    model = accelerated(loaded.model, plan.fast, attention=attention, fp8=plan.fp8, compiled=plan.compiled)
    if plan.text_encoder is None:
        config = loaded.config
        encoder = DemoTextEncoder(config.text_len, config.text_dim)
        embeddings = encode(encoder, prompts)
    vae = load_vae(plan.vae, dtype=plan.dtype, device=plan.device)
    decoder = accelerated_decoder(vae, plan.fast)
    pictures = _given_pictures(plan)
    initial = None if pictures is None else start_latents(pictures, vae, plan.requests[0], plan.device)

    with deferred_interrupt() as check:
        for request, out in zip(plan.requests, plan.outputs, strict=True):
            bar = ProgressBar()
            seen = Progress(0, request.pixel_frames, 0.0, None, None)

            def report(progress: Progress, bar: ProgressBar = bar) -> None:
                nonlocal seen
                seen = progress
                bar.update(progress)
                # In the thread that samples alone: all chunks finished by then still reach the file.
                if progress.forward is not None:
                    check()

            out.parent.mkdir(parents=True, exist_ok=True)
            console, sink = None, None
            if plan.interactive:
                assert encoder is not None
                console = _console(encoder, plan, request, out, loaded.model.device)
            try:
                check()
                sink = _sink(plan, request, out)
                done = make_video(
                    model,
                    decoder,
                    embeddings,
                    request,
                    sink,
                    initial_latents=initial,
                    recording=recording,
                    console=console,
                    report=report,
                )
            except KeyboardInterrupt:
                bar.finish()
                _say_interrupted(sink, seen)
                _finish(recording, plan.save_state, request, out, console)
                return _INTERRUPTED
            except OSError:  # a full disk, or a video that a player has open: what was sampled is kept
                bar.finish()
                with contextlib.suppress(OSError):
                    _finish(recording, plan.save_state, request, out, console)
                raise
            finally:
                bar.finish()
            _finish(recording, plan.save_state, request, out, console)
            print(_result(out, done))
            if plan.signing is not None:
                print(_sign(out, *plan.signing, request))
    return 0


def _given_pictures(plan: Plan) -> Tensor | None:
    """What the video begins with, uint8 [T,H,W,3]."""
    if plan.image:
        return read_image(plan.image)[None]
    return read_video(plan.video, last=pixel_frames(plan.requests[0].given_frames)) if plan.video else None


def _result(out: Path, done: Progress) -> str:
    first = f"{done.first_frame_seconds:.2f} s to the first frame" if done.first_frame_seconds is not None else ""
    return (
        f"{out}: {done.pixel_frames} pixel frames in {done.seconds:.2f} s, {done.fps:.2f} FPS, {first} "
        "(sampling, decoding and writing; without loading and text encoding)"
    )


def _sink(plan: Plan, request: VideoRequest, out: Path) -> FrameSink:
    metadata = {"title": request.prompt_text(), **request.to_dict()}
    if plan.png:
        return PngSequence(out, replace=plan.overwrite, metadata=metadata, mark_generated=plan.mark_generated)
    return Mp4Writer(
        out, request.fps, request.width, request.height, metadata=metadata, mark_generated=plan.mark_generated
    )


def _sign(out: Path, certificate: Path, key: Path, request: VideoRequest) -> str:
    from ..c2pa_signing import sign_c2pa

    sign_c2pa(out, certificate, key, title=request.prompt_text())
    return f"{out}: signed with {certificate}"


def _console(encoder: TextEncoder, plan: Plan, request: VideoRequest, out: Path, device: torch.device) -> Console:
    console = Console(
        live_prompts(lambda prompt: encoder.encode([prompt]).to(device), plan.slots),
        request.fps,
        # At once: a process that is killed leaves its prompts too.
        keep=lambda log: _write_timeline(out, _as_shown(request, log)),
    )
    console.start()
    return console


def _as_shown(request: VideoRequest, log: Sequence[Switch]) -> VideoRequest:
    """The request with the prompts that came while the video was made."""
    entries = list(request.entries)
    for switch in log:
        entries = [entry for entry in entries if entry.start_latent_frame < switch.start_latent_frame]
        entries.append(switch.entry())
    return dataclasses.replace(request, entries=tuple(entries))


def _write_timeline(out: Path, request: VideoRequest) -> Path:
    """All prompts, beside the video: with the seed they make it again."""
    path = out.with_suffix(".timeline.txt")
    with replacing(path) as file:
        file.write(f"{format_timeline([one_line(entry) for entry in request.entries])}\n".encode())
    return path


def _finish(
    recording: Recording | None, state: Path | None, request: VideoRequest, out: Path, console: Console | None
) -> None:
    """What is saved of a video that is complete, or was interrupted."""
    log = console.live.log if console is not None else []
    shown = _as_shown(request, log)
    _save(recording, state, shown)
    if log:
        path = _write_timeline(out, shown)
        print(
            f'{path}: the prompts as they were shown; --timeline "@{path}" --seed {request.seed} makes this video again'
        )


def _say_interrupted(sink: FrameSink | None, seen: Progress) -> None:
    if sink is None or not seen.pixel_frames:
        print("interrupted: no frame was finished", file=sys.stderr)
    else:
        print(f"interrupted: {seen.pixel_frames} pixel frames are in {sink.part}", file=sys.stderr)


def _save(recording: Recording | None, path: Path | None, request: VideoRequest) -> None:
    if recording is None or path is None:
        return
    if not recording.latents:
        print("note: no chunk was finished, so there is no state to save", file=sys.stderr)
        return
    recording.save(path, request)
    print(f'{path} and {latents_path(path).name}: saved, --resume "{path}" goes on')
