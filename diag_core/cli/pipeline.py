"""Prompt -> chunks -> pictures -> file, each chunk at once. Prints nothing.

Shapes: latents [1,C,f,h,w], pixels [1,3,T,H,W].
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chunk_loop import Chunk, Forward
from ..geometry import latent_size, pixel_frames
from ..live import LiveTimeline, follow
from ..noise import SeededNoise
from ..pictures import fit_image
from ..pipeline import Decodes, OnForward, VideoPipeline
from ..sampler import CausalModel, stream_chunks
from ..sinks import FrameSink
from ..state import SamplerState
from ..timeline import Timeline
from ..vae import TinyVAE, WanVAE
from .interactive import Console
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


def start_latents(pictures: Tensor, vae: WanVAE | TinyVAE, request: VideoRequest, device: torch.device) -> Tensor:
    """What a video begins with, as its first `given_frames` latent frames.

    Args:
        pictures: uint8 [T,H,W,3], of which the last count; cropped to the video's size. A single one is repeated where
            they are fewer than so many latent frames take.
    """
    count = pixel_frames(request.given_frames)
    fitted = [fit_image(picture, request.width, request.height) for picture in pictures[-count:]]
    pixels = torch.cat(fitted, dim=2).expand(-1, -1, count, -1, -1)
    with torch.no_grad():
        return vae.encode(pixels.to(device)).float()


def make_video(
    model: CausalModel,
    vae: Decodes,
    embeddings: Mapping[str, Tensor],
    request: VideoRequest,
    sink: FrameSink,
    *,
    initial_latents: Tensor | None = None,
    recording: Recording | None = None,
    console: Console | None = None,
    report: Callable[[Progress], None],
) -> Progress:
    """Sample, decode and write a video; the last progress is returned.

    Args:
        embeddings: of all `request.prompts()`.
        sink: entered and left here.
        initial_latents: `request.given_frames` of them.
        recording: filled as the video grows. One that holds latents already is gone on with, and the file begins with
            them.
        console: takes prompts while the video is made, and may end it.
        report: called after every forward and every chunk written, from the thread that did it. What it raises ends
            the video, whose frames so far stay in `sink.part`.

    Raises:
        ValueError, OSError: as `stream_chunks` and the sink.
    """
    start = time.perf_counter()
    first: float | None = None
    earlier = recording.joined() if recording is not None else None
    if earlier is not None and request.given_frames:
        initial_latents = earlier[:, :, : request.given_frames].to(model.device)
    entries = [(entry.start_latent_frame, embeddings[entry.prompt]) for entry in request.entries]
    timeline = (LiveTimeline if console else Timeline)(entries, request.blend_chunks).to(model.device)
    height, width = latent_size(request.height, request.width)
    written = 0
    lock = threading.Lock()

    def tell(forward: Forward | None = None) -> None:
        with lock:
            report(progress(forward))

    def progress(forward: Forward | None = None) -> Progress:
        return Progress(written, request.pixel_frames, time.perf_counter() - start, first, forward)

    def chunks(on_forward: OnForward) -> Iterator[Chunk]:
        state = SamplerState() if recording is None else recording.state
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
            state=state,
            on_forward=on_forward,
        )
        if console is not None:
            assert isinstance(timeline, LiveTimeline)
            stream = console.until_stopped(follow(stream, console.live, [timeline], state, request.chunk_frames))
        if recording is None:
            return stream
        return _recorded(stream, recording, earlier, [span.length for span in request.spans()])

    def place(latents: Tensor) -> Tensor:
        return latents.to(model.device)

    pipeline = VideoPipeline(chunks, vae, pixel_frames=request.pixel_frames, on_forward=tell, place=place)
    with sink, contextlib.closing(pipeline.frames()) as pieces:
        for frames in pieces:
            first = first or frames.seconds
            sink.write(frames.pixels)
            written = sink.frames
            tell()
    return progress()


def _recorded(
    chunks: Iterator[Chunk], recording: Recording, earlier: Tensor | None, lengths: list[int]
) -> Iterator[Chunk]:
    """The earlier latents and then the chunks, which join them, in pieces of `lengths` latent frames.

    So a video gone on with is decoded as one made in one go, where a trimmed chunk lies between the two as well.
    """
    held = earlier
    start = 0
    for chunk in itertools.chain([None], chunks):
        if chunk is not None:
            recording.latents.append(chunk.latents.cpu())
            held = chunk.latents if held is None else torch.cat((held.to(chunk.latents.device), chunk.latents), dim=2)
        while held is not None and held.shape[2] and lengths and held.shape[2] >= lengths[0]:
            length = lengths.pop(0)
            yield Chunk(-1 if chunk is None else chunk.index, start, held[:, :, :length], 0)
            held, start = held[:, :, length:], start + length
    if held is not None and held.shape[2]:
        yield Chunk(-1, start, held, 0)
