"""Chunks in, pictures out, while the next chunk is being sampled.

    sampling -> [latents] -> decoding -> [pictures] -> whoever reads them

Sampling and decoding run in a thread each, on a GPU in a stream each, and what is made waits in the brackets, one
chunk in each: a slow reader slows the sampling down, and memory does not grow with the video's length. The second
chunk is begun when the first one's pictures have been made, so that these come as soon as they can. The next video goes
through the same two threads.

Shapes: latents [1,C,f,H,W], pictures uint8 [T,H,W,3].
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from .ahead import run_ahead
from .chunk_loop import Chunk, Forward
from .pictures import to_uint8

OnForward = Callable[[Forward], None]


class Decodes(Protocol):
    """What a pipeline asks of a VAE."""

    def streaming_decoder(self) -> Pushed: ...


class Pushed(Protocol):
    def push(self, latents: Tensor) -> Tensor:
        """The next latents [1,C,f,H,W] -> their pixels [1,3,T,H,W] in -1..1, or uint8 [T,H,W,3]."""
        ...


@dataclass(frozen=True)
class Frames:
    """The pictures of a chunk."""

    chunk: Chunk
    """with its latents on the device they were sampled on"""
    start_pixel_frame: int
    pixels: Tensor
    """uint8 [T,H,W,3] on the CPU"""
    seconds: float
    """from the start of the pipeline until the pictures were there"""


class VideoPipeline:
    """One video's way from the sampler to pictures.

    Args:
        chunks: called once, in the sampling thread, with what is to be called after every forward; gives the chunks:
            `lambda on_forward: stream_chunks(..., on_forward=on_forward)`.
        vae: decodes them, in a stream of its own.
        pixel_frames: hand out no more than so many; all when left out.
        on_forward: called in the sampling thread after every forward. An exception that it raises ends the video and
            comes out of the iterator.
        place: brings latents to the device and dtype that the decoder wants them in.
    """

    def __init__(
        self,
        chunks: Callable[[OnForward], Iterable[Chunk]],
        vae: Decodes,
        *,
        pixel_frames: int | None = None,
        on_forward: OnForward = lambda _: None,
        place: Callable[[Tensor], Tensor] = lambda latents: latents,
    ) -> None:
        self.chunks, self.vae, self.pixel_frames = chunks, vae, pixel_frames
        self.on_forward, self.place = on_forward, place

    def frames(self) -> Generator[Frames, None, None]:
        """Hands the pictures out, chunk by chunk.

        However it ends (exhausted, closed early, forgotten, or by an error of the sampler, the decoder or the reader),
        both threads are done with it. An error of theirs is raised here, after the pictures before it.
        """
        first_shown = threading.Event()
        start = time.perf_counter()

        def sample(check: Callable[[], None]) -> Iterator[tuple[Chunk, torch.cuda.Event | None]]:
            def on_forward(forward: Forward) -> None:
                check()
                self.on_forward(forward)

            for number, chunk in enumerate(self.chunks(on_forward)):
                yield chunk, _done(chunk.latents)
                while number == 0 and not first_shown.wait(0.05):
                    check()

        def decode(check: Callable[[], None]) -> Iterator[Frames]:
            decoder, shown = self.vae.streaming_decoder(), 0
            copier = _Copier()
            with contextlib.closing(run_ahead(sample, name="diagdistill sampling")) as sampled:
                for chunk, done in sampled:
                    check()
                    with copier.after(done, chunk.latents.device):
                        pixels = to_uint8(decoder.push(self.place(chunk.latents)))
                        if self.pixel_frames is not None:
                            pixels = pixels[: self.pixel_frames - shown]
                        pixels = copier.to_cpu(pixels)
                    if pixels.shape[0]:
                        yield Frames(chunk, shown, pixels, time.perf_counter() - start)
                    shown += pixels.shape[0]
                    first_shown.set()
                    if shown == self.pixel_frames:
                        return

        yield from run_ahead(decode, name="diagdistill decoding")


def _done(latents: Tensor) -> torch.cuda.Event | None:
    """Marks, on the GPU, what has been queued so far: later chunks are queued before this one is decoded."""
    if latents.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(latents.device))
    return event


@lru_cache
def _decoding_stream(device: torch.device) -> torch.cuda.Stream:
    # One for the process: PyTorch has 32 streams a GPU and hands them out in turn, so that one for every video would
    # some day be the one that a model captures its graphs on.
    return torch.cuda.Stream(device)


class _Copier:
    """Decodes on a stream of its own where the latents are on a GPU, and waits for that stream alone."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None

    @contextlib.contextmanager
    def after(self, done: torch.cuda.Event | None, device: torch.device) -> Iterator[None]:
        """What is queued inside on `device` runs after `done`, beside all else."""
        if done is None:
            yield
            return
        self.stream = _decoding_stream(device)
        self.stream.wait_event(done)
        with torch.cuda.stream(self.stream):
            yield

    def to_cpu(self, pixels: Tensor) -> Tensor:
        """Waits until the pictures are there, and so until the latents they were made of may be freed."""
        if self.stream is None:
            return pixels.cpu()
        copy = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
        copy.copy_(pixels, non_blocking=True)
        self.stream.synchronize()
        return copy
