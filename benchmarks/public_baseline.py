"""The public implementation of the method beside this one, on the same device in the same run:

    python -m benchmarks.public_baseline CHECKOUT --json FILE

CHECKOUT is a clone of Sphere-AI-Lab/diagdistill with its own requirements installed; `benchmarks/public_pipeline.py`
says what is given to it. Before anything is measured, every forward of one of its videos is repeated here with the same
weights and inputs, and the worst distance is reported: both do the same work, or the comparison says nothing.

It needs the package flash-attn, and this implementation then takes the same kernel. `--attention own` lets this one
choose its own; `--attention sdpa` runs both on PyTorch's, with nothing to build.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.public_pipeline import PublicForward, PublicPipeline, check_checkout
from diag_core.bench import PRESETS, BenchSetting, Rig, Spread, measure_video, save_report
from diag_core.bench.meter import Meter
from diag_core.bench.report import header, spread_values
from diag_core.kv_cache import KVCache

ATTENTION = ("same", "own", "sdpa")
_MOST = 8  # videos of a warm-up


@torch.no_grad()
def compare(checkout: Path, setting: BenchSetting, *, runs: int, attention: str = "same") -> dict[str, Any]:
    """Both, one after the other; a report of plain values.

    Args:
        attention: "same": this one takes the kernel that theirs does; "own": each its own; "sdpa": PyTorch's for both.

    Raises:
        ValueError: the checkout is of something else, or it cannot be run here.
    """
    check_checkout(checkout)  # before a model is made
    ours = Rig(replace(setting, fast="off", decoder="none"))
    theirs = PublicPipeline(
        checkout, setting, ours.model.state_dict(), ours.context, ours.device, ours.model.dtype,
        attention="sdpa" if attention == "sdpa" else "own",
    )  # fmt: skip
    noise = torch.randn(theirs.shape, generator=ours.generator, device=ours.device).to(theirs.dtype)
    forwards = theirs.forwards(noise)
    distance = _worst_distance(ours, forwards)
    steps = [len(list(chunk)) for _, chunk in itertools.groupby(forwards, lambda forward: forward.start_frame)]
    del ours, forwards
    public = {
        "commit": theirs.commit(),
        "attention": theirs.attention,
        "steps_of_a_chunk": steps,
        **_measure_public(theirs, noise, setting, runs=runs),
    }
    kernel = setting.attention if attention == "own" else theirs.attention
    del theirs
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    rig = Rig(replace(setting, attention=kernel))
    own = _measure_own(rig, runs=runs)
    top = header(rig, "baseline")
    own["attention"] = top["path"].get("attention", kernel)

    def times(theirs: str, ours: str) -> float:
        return round(public["seconds"][theirs]["median"] / own["seconds"][ours]["median"], 3)

    return {
        **top,
        "runs": runs,
        "worst_distance_of_a_forward": float(f"{distance:.3g}"),
        "public": public,
        "ours": own,
        "times_as_fast": {
            "dit": times("dit", "dit"),
            "to_rgb_frames": times("together", "together"),
            "first_frame": times("together", "first_frame"),  # its first frame comes with its last
            "first_frame_of_one_chunk": times("one_chunk", "first_frame"),
        },
    }


def _worst_distance(rig: Rig, forwards: Sequence[PublicForward]) -> float:
    """Of a flow from this implementation's, given the same inputs, relative to the latter's size; root mean squares."""
    setting, model = rig.setting, rig.model
    rows, columns = (size // 2 for size in setting.latent_size)
    cache = KVCache(
        setting.model, setting.cache, batch=1, rows=rows, columns=columns, total_frames=setting.latent_frames,
        dtype=model.dtype, device=rig.device,
    )  # fmt: skip
    worst, start = 0.0, 0
    for forward in forwards:
        if forward.start_frame != start:
            cache.advance()
            start = forward.start_frame
        timestep = forward.timestep.to(rig.device, torch.float32)
        right: Tensor = model(forward.latents, timestep, rig.context, cache=cache, start_frame=start).float()
        worst = max(worst, float((forward.flow.float() - right).norm() / right.norm()))
    return worst


def _measure_public(theirs: PublicPipeline, noise: Tensor, setting: BenchSetting, *, runs: int) -> dict[str, Any]:
    meter, mode = Meter(theirs.device), theirs.compile()

    def seconds(run: Callable[[Tensor], Tensor], noise: Tensor) -> float:
        begin = meter.now()
        run(noise)
        return meter.now() - begin

    warm_up = _warm_up(lambda: seconds(theirs.video, noise))
    meter.reset_peak()
    dit, together = [], []
    for _ in range(runs):
        dit.append(seconds(theirs.latents, noise))
        together.append(seconds(theirs.video, noise))
    frames, peak = len(theirs.video(noise)), meter.memory().peak
    # Last of all: another length to decode may have been compiled into something slower for all lengths.
    first = noise[:, : setting.chunk_frames]
    _warm_up(lambda: seconds(theirs.video, first))
    one_chunk = [seconds(theirs.video, first) for _ in range(runs)]
    spreads = {"dit": dit, "together": together, "one_chunk": one_chunk}
    whole = Spread(tuple(together))
    return {
        "torch_compile": mode,
        "seconds": {name: spread_values(Spread(tuple(values))) for name, values in spreads.items()},
        "frames_decoded": frames,  # its tiny decoder also hands out those before the first
        "frames_per_second": round(setting.pixel_frames / whole.median, 3),
        "warm_up": {"videos": len(warm_up), "seconds": round(sum(warm_up), 3)},
        "peak_bytes": peak,
    }


def _warm_up(video: Callable[[], float]) -> list[float]:
    """Seconds of each of the videos until one is not much faster than the last: compiling goes on over several."""
    seconds = [video(), video()]
    while seconds[-1] < 0.9 * seconds[-2] and len(seconds) < _MOST:
        seconds.append(video())
    return seconds


def _measure_own(rig: Rig, *, runs: int) -> dict[str, Any]:
    result = measure_video(rig, runs=runs)
    assert result.together is not None and result.first_frame is not None, "the setting has a decoder"
    spreads = {"dit": result.dit, "together": result.together, "first_frame": result.first_frame}
    return {
        "seconds": {name: spread_values(spread) for name, spread in spreads.items()},
        "frames_per_second": round(rig.setting.pixel_frames / result.together.median, 3),
        "warm_up": {"videos": result.warm_up_videos, "seconds": round(result.warm_up_seconds, 3)},
        "peak_bytes": result.memory.peak,
    }


def sentence(report: dict[str, Any]) -> str:
    """What came of it, in words."""
    public, ours, times = report["public"], report["ours"], report["times_as_fast"]
    compiled = f"torch.compile {public['torch_compile']}" if public["torch_compile"] else "not compiled"
    steps = "".join(map(str, public["steps_of_a_chunk"]))
    return (
        f'The public implementation ({compiled}, {public["attention"]}, steps "{steps}") makes '
        f"{public['frames_per_second']:.1f} frames a second to RGB, this one ({ours['attention']}) "
        f"{ours['frames_per_second']:.1f}: {times['to_rgb_frames']:.2f} times as fast ({times['dit']:.2f} times in the "
        f"DiT, {times['first_frame']:.1f} times to the first frame, {times['first_frame_of_one_chunk']:.1f} times if "
        "theirs is asked for one chunk alone). A forward of theirs is at most "
        f"{report['worst_distance_of_a_forward']:.1e} off this one's."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of the public implementation")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to save all figures")
    parser.add_argument("--runs", type=int, default=5, help="measured videos of each (default: %(default)s)")
    parser.add_argument("--attention", choices=ATTENTION, default=ATTENTION[0], help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        report = compare(options.checkout, PRESETS["wan-1.3b"], runs=options.runs, attention=options.attention)
        save_report(report, options.json)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report["times_as_fast"]), sentence(report), f"saved: {options.json}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
