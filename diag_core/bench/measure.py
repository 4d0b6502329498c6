"""Takes the times: whole videos over and over, or one very long video chunk by chunk.

Nothing here holds more than one chunk: chunks and frames are dropped as they come, and a long measurement keeps a few
numbers of each.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..geometry import chunk_spans
from ..pipeline import VideoPipeline
from .meter import Memory, Meter
from .rig import Rig, to_rgb

Progress = Callable[[str], None]

EARLY = range(10, 60)  # chunks of a long video that its end is compared with: the window is full, and all is warm
LATE = 50  # how many of its last chunks are
MIN_CHUNKS = EARLY.stop + LATE


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def min(self) -> float:
        return min(self.values)

    @property
    def max(self) -> float:
        return max(self.values)


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """Seconds of every run. Without a decoder there are no frames: None.

    Attributes:
        dit: from the call of the sampler to its last latents, nothing else running.
        decode: all chunks through the streaming decoder into 8-bit RGB on the host, nothing else running.
        together: from the call to the last RGB frame on the host, each chunk decoded while the next is sampled.
        first_frame: from the same call to the first RGB frame on the host.
        steady_chunk: median time between the arrivals of two chunks' frames, over the second half of the video; None
            for a video of one chunk.
        warm_up_videos, warm_up_seconds: what ran before the first measured run, DiT and decoder together.
        memory: after all runs.
    """

    dit: Spread
    decode: Spread | None
    together: Spread | None
    first_frame: Spread | None
    steady_chunk: Spread | None
    warm_up_videos: int
    warm_up_seconds: float
    memory: Memory
    memory_kind: str


@dataclass(frozen=True, kw_only=True)
class LongResult:
    """A long video, chunk by chunk; `dit` and `decode` are seconds, decode None without a decoder.

    Attributes:
        first_frame: seconds from the call of the sampler to the first RGB frame, with no warm-up before it.
        memory: after each chunk.
        cpu_seconds: processor time of this process over all chunks. On a CPU with one thread it falls short of the wall
            clock by what other processes took, and a time measured beside them says little.
    """

    dit: tuple[float, ...]
    decode: tuple[float, ...] | None
    first_frame: float | None
    memory: tuple[Memory, ...]
    memory_kind: str
    cpu_seconds: float

    @property
    def together(self) -> tuple[float, ...]:
        """Seconds of each chunk, decoding included."""
        return self.dit if self.decode is None else tuple(map(sum, zip(self.dit, self.decode, strict=True)))

    @property
    def early(self) -> Spread:
        return Spread(early(self.together))

    @property
    def late(self) -> Spread:
        return Spread(late(self.together))

    @property
    def ratio(self) -> float:
        """Late over early median: 1 when a chunk takes as long at the end as at the beginning."""
        return self.late.median / self.early.median

    @property
    def current_growth(self) -> int | None:
        """Bytes by which the largest reading of the last chunks exceeds that of the early ones; negative if it fell."""
        current = [memory.current for memory in self.memory if memory.current is not None]
        return max(late(current)) - max(early(current)) if len(current) == len(self.memory) else None

    @property
    def peak_growth(self) -> int | None:
        """Bytes the peak rose by from the first early chunk to the end."""
        first, last = self.memory[EARLY.start].peak, self.memory[-1].peak
        return None if first is None or last is None else last - first


def early(values: Sequence) -> tuple:
    return tuple(values[EARLY.start : EARLY.stop])


def late(values: Sequence) -> tuple:
    return tuple(values[-LATE:])


def measure_video(rig: Rig, *, runs: int, warm_up: int = 1, progress: Progress = lambda text: None) -> VideoResult:
    """Samples and decodes the setting's video `warm_up` times unmeasured, then `runs` times.

    Raises:
        ValueError: no runs, or no warm-up (a first video pays for compiling, allocating and choosing kernels).
    """
    if runs < 1:
        raise ValueError(f"runs must be 1 or more, got {runs}")
    if warm_up < 1:
        raise ValueError(f"the warm-up must be 1 video or more, got {warm_up}")
    meter = Meter(rig.device)
    begin = meter.now()
    for _ in range(warm_up):
        _together(rig, meter)
    warm_up_seconds = meter.now() - begin
    progress(f"warm-up done in {warm_up_seconds:.2f} s")
    meter.reset_peak()
    dit, decode, together, first_frame, steady = [], [], [], [], []
    # In turn rather than one after the other, so that a slow minute of the machine falls on all of them.
    for run in range(runs):
        dit.append(_dit(rig, meter))
        if rig.decoder is not None:
            decode.append(_decode(rig, meter))
            arrivals = _together(rig, meter)
            first_frame.append(arrivals[0])
            together.append(arrivals[-1])
            if len(arrivals) > 1:
                between = [after - before for before, after in itertools.pairwise(arrivals)]
                steady.append(statistics.median(between[len(between) // 2 :]))
        progress(f"run {run + 1} of {runs} done")
    return VideoResult(
        dit=Spread(tuple(dit)),
        decode=Spread(tuple(decode)) if decode else None,
        together=Spread(tuple(together)) if together else None,
        first_frame=Spread(tuple(first_frame)) if first_frame else None,
        steady_chunk=Spread(tuple(steady)) if steady else None,
        warm_up_videos=warm_up,
        warm_up_seconds=warm_up_seconds,
        memory=meter.memory(),
        memory_kind=meter.memory_kind,
    )


def _dit(rig: Rig, meter: Meter) -> float:
    begin = meter.now()
    for _ in rig.chunks():
        pass
    return meter.now() - begin


def _decode(rig: Rig, meter: Meter) -> float:
    setting, latents, stream = rig.setting, rig.latents(), rig.decoding()
    assert stream is not None
    begin = meter.now()
    for start, length in chunk_spans(setting.latent_frames, setting.decode_frames):
        to_rgb(stream.push(latents[:, :, : min(length, setting.latent_frames - start)]))
    return meter.now() - begin


def in_turn(rig: Rig) -> None:
    """The setting's video once, each chunk sampled and then decoded, in this thread: what a profiler can see."""
    stream = rig.decoding()
    for chunk in rig.chunks():
        if stream is not None:
            for piece in chunk.latents.split(rig.setting.decode_frames, dim=2):
                to_rgb(stream.push(piece))


def _together(rig: Rig, meter: Meter) -> list[float]:
    """Seconds from the call until each chunk's frames were on the host, as a user's video goes there; without a
    decoder, until the last latents."""
    if rig.decoder is None:
        return [_dit(rig, meter)]
    meter.now()
    return [frames.seconds for frames in VideoPipeline(rig.chunks, rig).frames()]


def measure_long(rig: Rig, *, progress: Progress = lambda text: None) -> LongResult:
    """One video of the setting's length, timed chunk by chunk with the device idle between DiT and decoder.

    The warm-up that is excluded are the chunks before `EARLY`.

    Raises:
        ValueError: too few chunks to compare, or a window that grows with the video.
    """
    setting = rig.setting
    if setting.chunks < MIN_CHUNKS:
        raise ValueError(
            f"a long measurement compares the last {LATE} chunks with chunks {EARLY.start} to {EARLY.stop}: "
            f"it needs {MIN_CHUNKS} chunks or more, got {setting.chunks}"
        )
    if setting.cache.window_frames is None:
        raise ValueError("without a window time and memory grow with the video; give a window for a long measurement")
    meter, stream = Meter(rig.device), rig.decoding()
    dit: list[float] = []
    decode: list[float] = []
    memory: list[Memory] = []
    meter.reset_peak()
    cpu_begin, begin = time.process_time(), meter.now()
    chunks = rig.chunks()  # inside the first chunk's time: it allocates the cache
    for index in range(setting.chunks):
        chunk = next(chunks)
        sampled = meter.now()
        dit.append(sampled - begin)
        if stream is not None:
            to_rgb(stream.push(chunk.latents))
            decode.append(meter.now() - sampled)
        del chunk
        memory.append(meter.memory())
        if (index + 1) % 50 == 0:
            progress(f"{index + 1} of {setting.chunks} chunks done")
        begin = meter.now()
    return LongResult(
        dit=tuple(dit),
        decode=tuple(decode) if decode else None,
        first_frame=dit[0] + decode[0] if decode else None,
        memory=tuple(memory),
        memory_kind=meter.memory_kind,
        cpu_seconds=time.process_time() - cpu_begin,
    )
