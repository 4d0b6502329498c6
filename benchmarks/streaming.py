"""How time and memory of a stream depend on its length: a very long one, and five minutes against ten seconds.

    python -m benchmarks.streaming [--chunks 10000] [--runs 3] [--out FILE]

Random weights, positions "relative", a schedule that cycles, a window of 12 latent frames with a sink of 3. Everything
goes the way a user's video goes: sampled in one thread, decoded in another, pictures handed out chunk by chunk.

    endless    `--chunks` chunks of a tiny model; pictures are counted and dropped
    short      10 s, 64x64, written to an MP4, of the benchmark's small model; `--runs` times, as are the next two
    long       5 minutes of the same
    live       5 minutes with a new prompt every 20 chunks, which recomputes the window

Each runs in a process of its own, so that a peak of memory is its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diag_core import CacheConfig, DiagonalSchedule, SamplerState, SeededNoise, WanConfig, stream_chunks
from diag_core.bench import PRESETS, BenchSetting, Rig, Spread, save_report
from diag_core.bench.measure import EARLY, LATE, MIN_CHUNKS, early, late
from diag_core.bench.meter import Meter
from diag_core.bench.report import header, spread_values
from diag_core.chunk_loop import Chunk
from diag_core.geometry import latent_frames
from diag_core.live import LivePrompts, LiveTimeline, follow
from diag_core.mp4_writer import Mp4Writer
from diag_core.pipeline import OnForward, VideoPipeline
from diag_core.vae import TinyVAEConfig

FPS = 16
SWITCH_EVERY = 20  # chunks
SCHEDULE = DiagonalSchedule.parse("(4 3 2*5)*")
CACHE = CacheConfig(window_frames=12, sink_frames=3, positions="relative")
SECONDS = {"short": 10, "long": 300, "live": 300}
BLOCK = 100  # chunks whose median is one number of the result file


def endless_setting(chunks: int) -> BenchSetting:
    """So small that Python's own work is most of it: what grows a little with every chunk shows."""
    return BenchSetting(
        preset="streaming-tiny",
        model=WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=3, text_dim=32, text_len=16),
        width=32,
        height=32,
        latent_frames=3 * chunks,
        schedule=SCHEDULE,
        cache=CACHE,
        tiny_vae=TinyVAEConfig(encoder_width=8, decoder_widths=(16, 16, 8, 8)),
        dtype="float32",
        device="cpu",
    )


def video_setting(kind: str) -> BenchSetting:
    length = latent_frames(SECONDS[kind] * FPS)
    return dataclasses.replace(
        PRESETS["small"], width=64, height=64, latent_frames=length, schedule=SCHEDULE, cache=CACHE
    )


class Video:
    """A rig's video through the pipeline, from a prompt that may be changed meanwhile."""

    def __init__(self, rig: Rig, pixel_frames: int | None = None) -> None:
        self.rig, self.live = rig, LivePrompts(self._encode)
        # Written to once, so that what is measured does not grow by being measured.
        self.cpu = {name: torch.ones(rig.setting.chunks, dtype=torch.float64) for name in ("sampling", "decoding")}
        """Processor seconds of each chunk in the thread that does it. What a reader sees is less even: both threads
        share a core here, and hand chunks over in bursts."""
        self.pipeline = VideoPipeline(self._chunks, self, pixel_frames=pixel_frames)

    def _encode(self, prompt: str) -> Tensor:
        """Stands for a text encoder, whose time is not measured here."""
        model = self.rig.setting.model
        generator = torch.Generator().manual_seed(sum(prompt.encode()))
        return torch.randn(1, model.text_len, model.text_dim, generator=generator)

    def _chunks(self, on_forward: OnForward) -> Iterator[Chunk]:
        setting, state = self.rig.setting, SamplerState()
        timeline = LiveTimeline([(0, self.rig.context)])
        height, width = setting.latent_size
        chunks = stream_chunks(
            self.rig.model,
            timeline,
            setting.schedule,
            noise=SeededNoise(0),
            num_latent_frames=setting.latent_frames,
            height=height,
            width=width,
            cache=setting.cache,
            policy=setting.policy,
            chunk_frames=setting.chunk_frames,
            state=state,
            on_forward=on_forward,
        )
        return self._timed(follow(chunks, self.live, [timeline], state, setting.chunk_frames))

    def _timed(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        before = time.thread_time()
        for chunk in chunks:
            self.cpu["sampling"][chunk.index] = time.thread_time() - before
            yield chunk
            before = time.thread_time()

    def streaming_decoder(self) -> Video:
        """As the pipeline's decoder."""
        self._stream, self._decoded = self.rig.decoding(), 0
        return self

    def push(self, latents: Tensor) -> Tensor:
        before = time.thread_time()
        pixels = self._stream.push(latents)
        self.cpu["decoding"][self._decoded] = time.thread_time() - before
        self._decoded += 1
        return pixels


def endless(chunks: int) -> dict[str, Any]:
    if chunks < MIN_CHUNKS:
        raise ValueError(f"the first and the last chunks are compared: that takes {MIN_CHUNKS} or more, got {chunks}")
    rig = Rig(endless_setting(chunks))
    report = header(rig, "streaming")
    meter = Meter(rig.device)
    stream = Video(rig)
    wall, resident, peak = (torch.ones(chunks, dtype=torch.float64) for _ in range(3))
    frames, last_latent_frame = 0, 0
    before, cpu_begin = time.perf_counter(), time.process_time()
    for number, pieces in enumerate(stream.pipeline.frames()):
        frames += pieces.pixels.shape[0]
        last_latent_frame = pieces.chunk.start_frame + pieces.chunk.latents.shape[2] - 1
        memory = meter.memory()
        now = time.perf_counter()
        wall[number], before = now - before, now
        resident[number], peak[number] = memory.current or 0, memory.peak or 0
        if (number + 1) % 1000 == 0:
            say(f"{number + 1} of {chunks} chunks")
    cpu_seconds = time.process_time() - cpu_begin
    cpu, held = sum(stream.cpu.values()), resident[EARLY.stop :]
    assert isinstance(cpu, Tensor)
    return {
        **report,
        "chunks": chunks,
        "pixel_frames": frames,
        "last_latent_frame": last_latent_frame,
        "seconds_of_all_chunks": round(wall.sum().item(), 3),
        "cpu_seconds_of_all_chunks": round(cpu_seconds, 3),
        "seconds_of_a_chunk": compared(wall),
        "cpu_seconds_of_a_chunk": compared(cpu),
        "cpu_seconds_of_sampling_a_chunk": compared(stream.cpu["sampling"]),
        "cpu_seconds_of_decoding_a_chunk": compared(stream.cpu["decoding"]),
        "memory": {
            "kind": meter.memory_kind,
            "after_chunk": EARLY.stop,
            "first_bytes": int(held[0]),
            "last_bytes": int(held[-1]),
            "min_bytes": int(held.min()),
            "max_bytes": int(held.max()),
            "largest_over_first": round((held.max() / held[0]).item(), 4),
            "peak_growth_bytes": int(peak[-1] - peak[EARLY.stop]),
        },
        f"medians_of_{BLOCK}_chunks": {
            "seconds": blocks(wall, 6),
            "cpu_seconds": blocks(cpu, 6),
            "memory_bytes": blocks(resident, 0),
        },
    }


def compared(values: Tensor) -> dict[str, Any]:
    first, last = Spread(early(values.tolist())), Spread(late(values.tolist()))
    return {
        "early": {"chunks": [EARLY.start, EARLY.stop], **spread_values(first), "mean": mean(first)},
        "late": {"chunks": [len(values) - LATE, len(values)], **spread_values(last), "mean": mean(last)},
        "late_over_early": round(last.median / first.median, 4),
        "late_over_early_of_means": round(mean(last) / mean(first), 4),
    }


def mean(spread: Spread) -> float:
    return round(statistics.fmean(spread.values), 6)


def blocks(values: Tensor, digits: int) -> list[float]:
    medians = [statistics.median(block.tolist()) for block in values.split(BLOCK)]
    return [round(value, digits) if digits else int(value) for value in medians]


def video(kind: str) -> dict[str, Any]:
    """One video written to an MP4, which is thrown away."""
    setting = video_setting(kind)
    rig = Rig(setting)
    report = header(rig, "streaming")
    pixel_frames = SECONDS[kind] * FPS
    stream = Video(rig, pixel_frames)
    times: dict[bool, list[float]] = {False: [], True: []}  # of chunks that took a new prompt, and of the others
    prompts = itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        first = first_cpu = 0.0
        with Mp4Writer(path, FPS, setting.width, setting.height) as writer:  # loads PyAV, which is not measured
            cpu = time.process_time()
            begin = before = time.perf_counter()
            for pieces in stream.pipeline.frames():
                writer.write(pieces.pixels)
                now = time.perf_counter()
                first, first_cpu = first or now - begin, first_cpu or time.process_time() - cpu
                switched = any(switch.start_latent_frame == pieces.chunk.start_frame for switch in stream.live.log[-2:])
                times[switched].append(now - before)
                before = now
                if kind == "live" and pieces.chunk.index % SWITCH_EVERY == SWITCH_EVERY - 1:
                    stream.live.say(f"prompt {next(prompts)}")
        seconds = time.perf_counter() - begin
        written, size = writer.frames, path.stat().st_size
    assert written == pixel_frames, (written, pixel_frames)
    waits = [switch.waited for switch in stream.live.log]
    return {
        "header": report,
        "pixel_frames": written,
        "file_bytes": size,
        "first_frame_written_seconds": first,
        "first_frame_written_cpu_seconds": first_cpu,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "frames_per_second": written / seconds,
        "peak_bytes": Meter(rig.device).memory().peak,
        "memory_kind": Meter(rig.device).memory_kind + ", its peak",
        "switches": len(waits),
        "seconds_from_prompt_to_its_chunk": waits,
        "seconds_of_a_chunk": statistics.median(times[False]),
        "seconds_of_a_chunk_that_switches": statistics.median(times[True]) if times[True] else None,
    }


def videos(kind: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(name: str) -> dict[str, Any]:
        values = [run[name] for run in runs]
        return {**spread_values(Spread(tuple(values))), "values": [round(value, 6) for value in values]}

    first = runs[0]
    result = {
        "setting": first["header"]["setting"],
        "seconds_of_video": SECONDS[kind],
        **{name: first[name] for name in ("pixel_frames", "file_bytes", "switches")},
        **{name: spread(name) for name in ("first_frame_written_seconds", "first_frame_written_cpu_seconds")},
        **{name: spread(name) for name in ("seconds", "cpu_seconds")},
        "frames_per_second": spread("frames_per_second"),
        "seconds_of_a_chunk": spread("seconds_of_a_chunk"),
        "memory": {"kind": first["memory_kind"], "peak_bytes": [run["peak_bytes"] for run in runs]},
    }
    if kind == "live":
        waits = tuple(wait for run in runs for wait in run["seconds_from_prompt_to_its_chunk"])
        result["seconds_of_a_chunk_that_switches"] = spread("seconds_of_a_chunk_that_switches")
        result["seconds_from_prompt_to_its_chunk"] = spread_values(Spread(waits))
    return result


def apart(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--only", kind]
    command += ["--chunks", str(options.chunks), "--threads", str(options.threads)]
    begin = time.perf_counter()
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    say(f"{kind}: {time.perf_counter() - begin:.0f} s")
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SECONDS}
    # In turn, so that a slow minute of the machine falls on all of them.
    for _ in range(options.runs):
        for kind in SECONDS:
            runs[kind].append(apart(kind, options))
    long_run = apart("endless", options)
    shared = ("format", "date", "mode", "machine", "text_encoding")
    results = {kind: videos(kind, runs[kind]) for kind in SECONDS}
    peaks = {kind: statistics.median(results[kind]["memory"]["peak_bytes"]) for kind in SECONDS}
    return {
        **{name: long_run[name] for name in shared},
        "command": f"python -m benchmarks.streaming --chunks {options.chunks} --runs {options.runs} --out FILE",
        "runs": options.runs,
        "endless": {name: value for name, value in long_run.items() if name not in shared},
        **results,
        "peak_over_that_of_10_seconds": {kind: round(peaks[kind] / peaks["short"], 4) for kind in ("long", "live")},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000, help="of the endless stream (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each video (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: %(default)s)")
    parser.add_argument("--only", choices=["endless", *SECONDS], help="one measurement alone, in this process")
    parser.add_argument("--out", type=Path, help="write the result there rather than to standard output, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    one: dict[str, Callable[[], dict[str, Any]]] = {
        "endless": lambda: endless(options.chunks),
        **{kind: lambda kind=kind: video(kind) for kind in SECONDS},  # type: ignore[misc]
    }
    with torch.inference_mode():
        result = one[options.only]() if options.only else measure(options)
    if options.out:
        save_report(result, options.out)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
