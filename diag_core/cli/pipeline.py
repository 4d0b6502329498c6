"""Prompt -> chunks -> pixels -> file, each chunk at once. Prints nothing.

Shapes: latents [1,C,f,h,w], pixels [1,3,T,H,W].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..geometry import latent_size, pixel_frames
from ..noise import SeededNoise
from ..sampler import CausalModel, Forward, stream_chunks
from ..timeline import Timeline
from ..vae import TinyVAE, WanVAE
from ..video import Mp4Writer, fit_image, read_image, to_uint8
from .request import VideoRequest
from .saved import Recording


@dataclass(frozen=True)
class Progress:
    """Where a video stands."""

    pixel_frames: int
    """written"""
    of_pixel_frames: int
    seconds: float
    """since the call, models and prompt embeddings at hand"""
    first_frame_seconds: float | None
    """from the call to the first RGB frame"""
    forward: Forward | None
    """the forward just done; None after a chunk was written"""

    @property
    def fps(self) -> float:
        return self.pixel_frames / self.seconds if self.seconds else 0.0


def image_latents(path: Path, vae: WanVAE | TinyVAE, request: VideoRequest, device: torch.device) -> Tensor:
    """The image, cropped to the video's size, as its first `given_frames` latent frames.

    Raises:
        ValueError: it is no image. OSError: it cannot be read.
    """
    pixels = fit_image(read_image(path), request.width, request.height)
    repeated = pixels.expand(-1, -1, pixel_frames(request.given_frames), -1, -1)
    with torch.no_grad():
        return vae.encode(repeated.to(device)).float()


def make_video(
    model: CausalModel,
    vae: WanVAE | TinyVAE,
    embeddings: Mapping[str, Tensor],
    request: VideoRequest,
    out: Path,
    *,
    initial_latents: Tensor | None = None,
    recording: Recording | None = None,
    report: Callable[[Progress], None],
) -> Progress:
    """Sample, decode and write a video; the last progress is returned.

    Args:
        embeddings: of all `request.prompts()`.
        initial_latents: `request.given_frames` of them.
        recording: filled as the video grows. One that holds latents already is gone on with, and the file begins with
            them.
        report: called after every forward and every chunk written. What it raises ends the video, whose frames so far
            stay in `part_path(out)`.

    Raises:
        ValueError, OSError: as `stream_chunks` and `Mp4Writer`.
    """
    start = time.perf_counter()
    first: float | None = None
    decoder = vae.streaming_decoder()
    earlier = recording.joined() if recording is not None else None
    if earlier is not None and request.given_frames:
        initial_latents = earlier[:, :, : request.given_frames].to(model.device)
    entries = [(entry.start_latent_frame, embeddings[entry.prompt]) for entry in request.entries]
    timeline = Timeline(entries, request.blend_chunks).to(model.device)
    height, width = latent_size(request.height, request.width)
    metadata = {"title": request.prompt_text(), **request.to_dict()}

    written = 0

    def progress(forward: Forward | None = None) -> Progress:
        return Progress(written, request.pixel_frames, time.perf_counter() - start, first, forward)

    # Checks its arguments, and those against a state, before a file is begun.
    stream = stream_chunks(
        model,
        timeline,
        request.settings.diagonal_schedule(),
        noise=SeededNoise(request.seed),
        num_latent_frames=request.latent_frames,
        height=height,
        width=width,
        cache=request.cache(),
        policy=request.policy(),
        chunk_frames=request.chunk_frames,
        initial_latents=initial_latents,
        step=request.settings.step,
        cfg=request.settings.cfg,
        negative=embeddings[request.settings.negative_prompt].to(model.device) if request.guided else None,
        switch=request.switch,
        state=None if recording is None else recording.state,
        on_forward=lambda forward: report(progress(forward)),
    )

    def pieces() -> Iterator[Tensor]:
        if earlier is not None:
            yield earlier.to(model.device)
        for chunk in stream:
            if recording is not None:
                recording.latents.append(chunk.latents.cpu())
            yield chunk.latents

    with Mp4Writer(out, request.fps, request.width, request.height, metadata=metadata) as writer:
        for latents in _by_span(pieces(), [span.length for span in request.spans()]):
            frames = to_uint8(decoder.push(latents))[: request.pixel_frames - written].cpu()
            first = first or time.perf_counter() - start
            writer.write(frames)
            written = writer.frames
            report(progress())
    return progress()


def _by_span(pieces: Iterator[Tensor], lengths: list[int]) -> Iterator[Tensor]:
    """The same latent frames in pieces of `lengths`, so that a video gone on with is decoded as one made in one go."""
    held: Tensor | None = None
    for piece in pieces:
        held = piece if held is None else torch.cat((held, piece), dim=2)
        while held.shape[2] and lengths and held.shape[2] >= lengths[0]:
            yield held[:, :, : lengths[0]]
            held = held[:, :, lengths.pop(0) :]
    if held is not None and held.shape[2]:
        yield held
