"""`bench`: times sampling and decoding with random weights, prints a table and saves JSON."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from ..attention import NAMES
from ..bench import (
    PRESETS,
    BenchSetting,
    Rig,
    long_report,
    long_table,
    matrix_peak,
    measure_long,
    measure_video,
    save_report,
    take_apart,
    video_report,
    video_table,
)
from ..bench.measure import Spread, in_turn
from ..bench.meter import choose_device, limit_memory
from ..bench.setting import COMMITS, DECODERS, DTYPES
from ..bench.text import measure_text
from ..diagonal_schedule import DiagonalSchedule
from ..fast import KERNELS, MODES
from ..geometry import latent_frames
from . import values

EVERYTHING = "all"
RUNS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options left out (None) keep what the preset says."""
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="wan-1.3b", help="what to measure (default: %(default)s)")
    add("--size", type=values.size, metavar="WxH", help="pixels, multiples of 16")
    add("--frames", type=values.positive, metavar="N", help="pixel frames of a video")
    add("--schedule", metavar="TEXT", help='steps of each chunk, such as "4322222"')
    add("--commit", choices=COMMITS, help="what later chunks see of a finished one")
    add("--kv-noise", type=values.number, metavar="T", help="level of --commit noised, a schedule timestep 0..1000")
    add("--window", type=values.window, metavar="N", help=f"latent frames attended, or {EVERYTHING}")
    add("--sink", type=values.count, metavar="N", help="latent frames always kept")
    add("--batch", type=values.positive, metavar="N", help="videos at once")
    add("--decoder", choices=DECODERS, help="taehv: the tiny one; wan: Wan's own; none: latents only")
    add("--decode-frames", type=values.positive, metavar="N", help="latent frames decoded at once (default: 3)")
    add("--dtype", choices=sorted(DTYPES), help="precision of weights and cache")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: the GPU where there is one)")
    add("--attention", choices=NAMES, help="attention back end")
    add("--fast", choices=MODES, help="the fast path; auto: on a GPU (default: auto)")
    add("--kernels", choices=KERNELS, help="fused operations of the fast path")
    add("--no-graphs", dest="graphs", action="store_const", const=False, help="the fast path without CUDA graphs")
    add("--fp8", action="store_const", const=True, help="linear layers in FP8; takes --fast on")
    add("--compile", dest="compiled", action="store_const", const=True, help="torch.compile in places; takes --fast on")
    add("--memory", type=values.number, metavar="GB", help="memory of the GPU that may be used (10^9 bytes)")
    add("--text", action="store_true", help="also time umT5-XXL by itself: 11 GB for a moment, before the rest")
    add("--profile", type=Path, metavar="FILE", help="save a trace of one more video, for Perfetto (ui.perfetto.dev)")
    add("--threads", type=values.positive, metavar="N", help="CPU threads")
    add("--runs", type=values.positive, metavar="N", help=f"measured videos (default: {RUNS})")
    add("--warmup", type=values.positive, metavar="N", help="videos before the first measured one (default: 1)")
    add("--chunks", type=values.positive, metavar="N", help="one video of N chunks instead: time and memory of each")
    add("--json", type=Path, metavar="FILE", help="save all figures")


def setting_from(options: argparse.Namespace) -> BenchSetting:
    """The preset with the options given in its place.

    Raises:
        ValueError: options that do not fit each other.
    """
    preset = PRESETS[options.preset]
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "commit",
            "kv_noise",
            "batch",
            "decoder",
            "decode_frames",
            "dtype",
            "device",
            "attention",
            "fast",
            "kernels",
            "graphs",
            "fp8",
            "compiled",
        )
        if getattr(options, name) is not None
    }
    if options.kv_noise is not None and options.commit != "noised":
        raise ValueError("--kv-noise is the level of a noised commit: give --commit noised with it, or leave it out")
    if options.size is not None:
        changes["width"], changes["height"] = options.size
    if options.schedule is not None:
        changes["schedule"] = DiagonalSchedule.parse(options.schedule)
    if options.chunks is not None:
        for name in ("frames", "runs", "warmup", "profile", "text"):
            if getattr(options, name):
                raise ValueError(f"--chunks measures one long video: leave out --{name}")
        changes["latent_frames"] = options.chunks * preset.chunk_frames
    elif options.frames is not None:
        changes["latent_frames"] = latent_frames(options.frames)
    cache: dict[str, Any] = {}
    if options.window is not None:
        cache["window_frames"] = None if options.window == EVERYTHING else options.window
    if options.sink is not None:
        cache["sink_frames"] = options.sink
    changes["cache"] = dataclasses.replace(preset.cache, **cache)
    return dataclasses.replace(preset, **changes)


def run(options: argparse.Namespace) -> int:
    """Raises ValueError, before anything is measured, for what cannot be."""
    setting = setting_from(options)
    for name in ("json", "profile"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name} {path}: the folder does not exist; make it first")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    text = _text_encoding(setting, options) if options.text else None
    rig = Rig(setting)
    if options.memory is not None:
        limit_memory(rig.device, int(1e9 * options.memory))
    peak = matrix_peak(rig.device, DTYPES[setting.dtype])
    if options.chunks is not None:
        report = long_report(rig, measure_long(rig, progress=_progress), peak=peak)
        print(long_table(report))
    else:
        measured = measure_video(rig, runs=options.runs or RUNS, warm_up=options.warmup or 1, progress=_progress)
        _progress("one more video, under the profiler")
        apart = take_apart(lambda: in_turn(rig), rig.device, options.profile)
        report = video_report(rig, measured, peak=peak, breakdown=apart, text=text)
        print(video_table(report))
    if options.json is not None:
        save_report(report, options.json)
        print(f"\nsaved {options.json}")
    return 0


def _text_encoding(setting: BenchSetting, options: argparse.Namespace) -> Spread:
    """Before all else, so that the encoder's memory is given back before the rest is measured."""
    device = choose_device(setting.device)
    found = measure_text(device, DTYPES[setting.dtype], tokens=setting.model.text_len, runs=options.runs or RUNS)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
