"""Carries out a plan: loads the models once, then makes one video after the other."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..video import part_path
from .interrupt import deferred_interrupt
from .models import demo_encoder, encode, load_model, load_vae, umt5_encoder
from .pipeline import Progress, image_latents, make_video
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
    # The text encoder first, and then dropped: on many GPUs it does not fit beside the model.
    embeddings = {}
    if plan.text_encoder is not None:
        embeddings = encode(umt5_encoder(plan.text_encoder, plan.embedding_cache, device=plan.device), prompts)
    loaded = load_model(
        plan.checkpoint,
        dtype=plan.dtype,
        device=plan.device,
        attention=plan.attention,
        lora=plan.lora,
        lora_strength=plan.lora_strength,
    )
    if plan.text_encoder is None:
        embeddings = encode(demo_encoder(loaded), prompts)
    vae = load_vae(plan.vae, dtype=plan.dtype, device=plan.device)
    initial = image_latents(plan.image, vae, plan.requests[0], plan.device) if plan.image else None

    with deferred_interrupt() as check:
        for request, out in zip(plan.requests, plan.outputs, strict=True):
            bar = ProgressBar()
            seen = Progress(0, request.pixel_frames, 0.0, None, None)

            def report(progress: Progress, bar: ProgressBar = bar) -> None:
                nonlocal seen
                seen = progress
                bar.update(progress)
                check()

            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                check()
                done = make_video(
                    loaded.model,
                    vae,
                    embeddings,
                    request,
                    out,
                    initial_latents=initial,
                    recording=recording,
                    report=report,
                )
            except KeyboardInterrupt:
                bar.finish()
                _say_interrupted(out, seen)
                _save(recording, plan.save_state, request)
                return _INTERRUPTED
            finally:
                bar.finish()
            print(_result(out, done))
            _save(recording, plan.save_state, request)
    return 0


def _result(out: Path, done: Progress) -> str:
    first = f"{done.first_frame_seconds:.2f} s to the first frame" if done.first_frame_seconds is not None else ""
    return (
        f"{out}: {done.pixel_frames} pixel frames in {done.seconds:.2f} s, {done.fps:.2f} FPS, {first} "
        "(sampling, decoding and writing; without loading and text encoding)"
    )


def _say_interrupted(out: Path, seen: Progress) -> None:
    kept = f"{seen.pixel_frames} pixel frames are in {part_path(out)}"
    print(f"interrupted: {kept if seen.pixel_frames else 'no frame was finished'}", file=sys.stderr)


def _save(recording: Recording | None, path: Path | None, request: VideoRequest) -> None:
    if recording is None or path is None:
        return
    if not recording.latents:
        print("note: no chunk was finished, so there is no state to save", file=sys.stderr)
        return
    recording.save(path, request)
    print(f"{path} and {latents_path(path).name}: saved, --resume {path} goes on")
