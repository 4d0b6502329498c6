"""Says what was measured, for JSON and as a table, with all that a figure needs to be compared or repeated."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .breakdown import Breakdown
from .measure import EARLY, LATE, LongResult, Spread, VideoResult
from .meter import describe_machine
from .peak import Peak
from .rig import Rig
from .setting import BenchSetting
from .work import Work

ENOUGH_RUNS = 5
_TERA = 1e12
_MEGA = 1e6


def video_report(
    rig: Rig,
    result: VideoResult,
    *,
    peak: Peak | None = None,
    breakdown: Breakdown | None = None,
    text: Spread | None = None,
) -> dict[str, Any]:
    """Everything measured, as plain values for JSON.

    Args:
        peak: of matrix products on the same device; adds the share of it that the DiT reaches.
        breakdown: of one more video, with the decoder.
        text: of encoding the prompt.
    """
    setting = rig.setting
    frames = setting.pixel_frames * setting.batch
    seconds = {name: getattr(result, name) for name in ("dit", "decode", "together", "first_frame", "steady_chunk")}
    return {
        **header(rig, "video"),
        "warm_up": {"excluded": True, "videos": result.warm_up_videos, "seconds": round(result.warm_up_seconds, 6)},
        "runs": len(result.dit.values),
        "enough_runs": len(result.dit.values) >= ENOUGH_RUNS,
        "seconds": {name: _spread(spread, values=True) for name, spread in seconds.items()},
        "frames_per_second": {
            name: None if seconds[name] is None else round(frames / seconds[name].median, 3)
            for name in ("dit", "decode", "together")
        },
        "memory": {"kind": result.memory_kind, "peak_bytes": result.memory.peak},
        "work": _work(setting.work, result.dit.median, peak),
        **({} if text is None else {"text_encoding": {"included": False, "seconds": spread_values(text)}}),
        **({} if breakdown is None else {"breakdown": _breakdown(breakdown)}),
    }


def long_report(rig: Rig, result: LongResult, *, peak: Peak | None = None) -> dict[str, Any]:
    """As `video_report`."""
    setting = rig.setting
    frames = 4 * setting.chunk_frames * setting.batch
    late_dit = Spread(result.dit[-LATE:])
    late_decode = None if result.decode is None else Spread(result.decode[-LATE:])
    return {
        **header(rig, "long"),
        "warm_up": {"excluded": True, "chunks": EARLY.start, "seconds": round(sum(result.together[: EARLY.start]), 6)},
        "chunks": len(result.dit),
        "seconds_of_all_chunks": round(sum(result.together), 6),
        "cpu_seconds_of_all_chunks": round(result.cpu_seconds, 6),
        "decode_included": result.decode is not None,
        "first_frame_seconds": _rounded(result.first_frame),
        "seconds_of_a_chunk": {
            "early": {"chunks": [EARLY.start, EARLY.stop], **spread_values(result.early)},
            "late": {"chunks": [len(result.dit) - LATE, len(result.dit)], **spread_values(result.late)},
            "late_over_early": round(result.ratio, 4),
            "late_dit": _spread(late_dit),
            "late_decode": _spread(late_decode),
        },
        "frames_per_second": round(frames / result.late.median, 3),
        "memory": {
            "kind": result.memory_kind,
            "peak_bytes": result.memory[-1].peak,
            "current_growth_bytes": result.current_growth,
            "peak_growth_bytes": result.peak_growth,
        },
        "work": _work(setting.work, sum(result.dit), peak),
        "per_chunk": {
            "dit_seconds": [round(value, 6) for value in result.dit],
            "decode_seconds": None if result.decode is None else [round(value, 6) for value in result.decode],
            "memory_bytes": [memory.current for memory in result.memory],
            "peak_memory_bytes": [memory.peak for memory in result.memory],
        },
    }


def save_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Indented JSON, with each list of numbers on one line so that the file can be read."""
    lists: list[str] = []

    def folded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: folded(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            lists.append(json.dumps(value))
            return f"\0{len(lists) - 1}\0"
        return value

    text = json.dumps(folded(report), indent=2, ensure_ascii=False)
    for number, line in enumerate(lists):
        text = text.replace(json.dumps(f"\0{number}\0"), line)
    Path(path).write_text(text + "\n", encoding="utf-8")


def video_table(report: dict[str, Any]) -> str:
    fps, seconds = report["frames_per_second"], report["seconds"]
    warm_up, runs = report["warm_up"], report["runs"]
    rows = [("", "median", "min", "max", "frames/s")]
    for title, name in (
        ("DiT", "dit"),
        ("decode", "decode"),
        ("DiT and decode together", "together"),
        ("first RGB frame after the call", "first_frame"),
        ("a chunk, in the video's second half", "steady_chunk"),
    ):
        rows.append((title, *_times(seconds[name]), f"{fps[name]:.2f}" if fps.get(name) else ""))
    few = "" if report["enough_runs"] else f" (a figure to quote needs {ENOUGH_RUNS} or more)"
    return "\n".join(
        [
            *_head(report),
            _line("warm-up", f"{warm_up['videos']} video(s), {warm_up['seconds']:.2f} s, excluded"),
            _line("runs", f"{runs}{few}"),
            "",
            *_columns(rows),
            "",
            _line("peak memory", _peak(report)),
            *_work_lines(report),
            *_breakdown_lines(report),
        ]
    )


def long_table(report: dict[str, Any]) -> str:
    times, memory, warm_up = report["seconds_of_a_chunk"], report["memory"], report["warm_up"]
    what = "DiT and decode" if report["decode_included"] else "DiT alone"
    rows = [("seconds of a chunk", "median", "min", "max", "frames/s")]
    rows.append((f"{what}, chunks {EARLY.start} to {EARLY.stop}", *_times(times["early"]), ""))
    rows.append((f"{what}, last {LATE}", *_times(times["late"]), f"{report['frames_per_second']:.2f}"))
    rows.append((f"DiT, last {LATE}", *_times(times["late_dit"]), ""))
    rows.append((f"decode, last {LATE}", *_times(times["late_decode"]), ""))
    first = report["first_frame_seconds"]
    return "\n".join(
        [
            *_head(report),
            _line("warm-up", f"the first {warm_up['chunks']} chunks, {warm_up['seconds']:.2f} s, excluded"),
            _line("first RGB frame", "not measured" if first is None else f"{first:.4f} s after the call, cold"),
            "",
            *_columns(rows),
            "",
            _line("late over early", f"{times['late_over_early']:.4f}"),
            _line(
                "processor", f"{report['cpu_seconds_of_all_chunks']:.1f} s in {report['seconds_of_all_chunks']:.1f} s"
            ),
            _line("peak memory", _peak(report)),
            _line(
                "memory growth",
                f"{_megabytes(memory['current_growth_bytes'])} held, {_megabytes(memory['peak_growth_bytes'])} at the "
                f"peak, from chunk {EARLY.start} to the end",
            ),
            *_work_lines(report),
        ]
    )


# -- values -----------------------------------------------------------------------------------------------------------


def header(rig: Rig, mode: str) -> dict[str, Any]:
    """What any measurement of a rig depends on: date, machine, setting."""
    return {
        "format": "diagdistill-bench-1",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "mode": mode,
        "machine": describe_machine(rig.device),
        "setting": _setting(rig, rig.setting),
        "path": {"asked": rig.setting.fast, **rig.path()},
        "text_encoding": {"included": False, "seconds": None},
    }


def _setting(rig: Rig, setting: BenchSetting) -> dict[str, Any]:
    model = setting.model
    return {
        "preset": setting.preset,
        "model": model.to_dict(),
        "parameters": rig.parameters,
        "weights": "random",
        "width": setting.width,
        "height": setting.height,
        "pixel_frames": setting.pixel_frames,
        "latent_frames": setting.latent_frames,
        "chunk_frames": setting.chunk_frames,
        "chunks": setting.chunks,
        "batch": setting.batch,
        "schedule": setting.schedule.text(),
        "shift": setting.schedule.shift,
        "forwards": setting.forwards,
        "commit": setting.commit,
        "kv_noise": setting.kv_noise if setting.commit == "noised" else None,
        "window_frames": setting.cache.window_frames,
        "sink_frames": setting.cache.sink_frames,
        "positions": setting.cache.positions,
        "precision": setting.dtype,
        "attention": setting.attention,
        "attention_kernels": rig.attention_kernels(),
        "decoder": setting.decoder,
        "step": setting.step,
        "guidance": None if setting.branches == 1 else setting.cfg,
    }


def _work(work: Work, dit_seconds: float, peak: Peak | None) -> dict[str, Any]:
    rate = work.total / _TERA / dit_seconds
    roofline = {} if peak is None else {
        "peak_tflop_per_second": round(peak.tflop_per_second, 6),
        "peak_measured_with": list(peak.shape),
        "share_of_peak": round(rate / peak.tflop_per_second, 4),
        "seconds_at_peak": round(work.total / _TERA / peak.tflop_per_second, 6),
    }  # fmt: skip
    return {
        "tflop": round(work.total / _TERA, 6),
        "linear_tflop": round(work.linear / _TERA, 6),
        "self_attention_tflop": round(work.self_attention / _TERA, 6),
        "cross_attention_tflop": round(work.cross_attention / _TERA, 6),
        "rest_tflop": round(work.rest / _TERA, 6),
        "dit_tflop_per_second": round(rate, 6),
        **roofline,
    }


def _breakdown(breakdown: Breakdown) -> dict[str, Any]:
    busy = sum(breakdown.seconds.values())
    return {
        "of": "one video, each chunk sampled and then decoded, under the profiler",
        "wall_seconds": round(breakdown.wall, 6),
        "device_seconds": round(busy, 6),
        "seconds": {kind: round(seconds, 6) for kind, seconds in breakdown.seconds.items()},
        "longest": [
            {"name": name, "seconds": round(seconds, 6), "calls": calls} for name, seconds, calls in breakdown.longest
        ],
    }


def spread_values(spread: Spread) -> dict[str, Any]:
    return {"median": round(spread.median, 6), "min": round(spread.min, 6), "max": round(spread.max, 6)}


def _spread(spread: Spread | None, *, values: bool = False) -> dict[str, Any] | None:
    if spread is None:
        return None
    all_values = {"values": [round(value, 6) for value in spread.values]} if values else {}
    return {**spread_values(spread), **all_values}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


# -- text -------------------------------------------------------------------------------------------------------------


def _line(name: str, text: str) -> str:
    return f"{name:<16}{text}"


def _head(report: dict[str, Any]) -> list[str]:
    machine, setting = report["machine"], report["setting"]
    cpu = f"{machine['cpu']}, {machine['threads']} thread(s)"
    window = setting["window_frames"]
    guidance = "no guidance" if setting["guidance"] is None else f"guidance {setting['guidance']:g}"
    noise = "" if setting["kv_noise"] is None else f" at KV noise {setting['kv_noise']:g}"
    return [
        _line("hardware", cpu if machine["gpu"] is None else f"{machine['gpu']} (host: {cpu})"),
        _line("software", f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}"),
        _line("model", f"{setting['preset']}, {setting['parameters']:,} parameters, random weights"),
        _line(
            "video",
            f"{setting['width']}x{setting['height']}, {setting['pixel_frames']} pixel frames "
            f"({setting['latent_frames']} latent, {setting['chunks']} chunks), batch {setting['batch']}",
        ),
        _line("schedule", f"{setting['schedule']}, {setting['forwards']} forwards, {guidance}"),
        _line("commit", f"{setting['commit']}{noise}"),
        _line(
            "window",
            "everything so far" if window is None else f"{window} latent frames, {setting['sink_frames']} of them sink",
        ),
        _line("precision", setting["precision"]),
        _line("attention", f"{setting['attention']} ({', '.join(setting['attention_kernels']) or 'kernel unknown'})"),
        _line("path", _path(report["path"])),
        _line("decoder", setting["decoder"]),
        _line("text encoding", _text_encoding(report["text_encoding"]["seconds"])),
    ]


def _text_encoding(seconds: dict[str, Any] | None) -> str:
    if seconds is None:
        return "not included"
    return f"not included; by itself {seconds['median']:.4f} s ({seconds['min']:.4f} to {seconds['max']:.4f})"


def _path(path: dict[str, Any]) -> str:
    text = f"{path['taken']} ({path['kernels']} kernels, {'' if path['cuda_graphs'] else 'no '}CUDA graphs)"
    if "error_of_a_forward" in path:
        text += ", feed-forward layers compiled" if path["compiled"] else ""
        text += f", {path['linear_layers']} linear layers, off the plain path by {path['error_of_a_forward']:.2g}"
    if "attention" in path:
        timed = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in path["attention_seconds"].items())
        text += f", attention by {path['attention']} ({timed})"
    return text


def _times(spread: dict[str, Any] | None) -> tuple[str, str, str]:
    if spread is None:
        return "not measured", "", ""
    return f"{spread['median']:.4f}", f"{spread['min']:.4f}", f"{spread['max']:.4f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return lines


def _peak(report: dict[str, Any]) -> str:
    return f"{_megabytes(report['memory']['peak_bytes'])}, {report['memory']['kind']}"


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / _MEGA:,.1f} MB"


def _work_lines(report: dict[str, Any]) -> list[str]:
    work = report["work"]
    parts = ", ".join(
        f"{name.replace('_', '-')} {work[f'{name}_tflop']:.4g}"
        for name in ("linear", "self_attention", "cross_attention", "rest")
    )
    return [
        _line("work of the DiT", f"{work['tflop']:.4g} TFLOP ({parts})"),
        _line("rate", f"{work['dit_tflop_per_second']:.4g} TFLOP/s over the DiT's time{_of_peak(work)}"),
    ]


def _of_peak(work: dict[str, Any]) -> str:
    if "share_of_peak" not in work:
        return ""
    shape = " x ".join(map(str, work["peak_measured_with"]))
    return (
        f": {work['share_of_peak']:.1%} of the {work['peak_tflop_per_second']:.4g} TFLOP/s that matrix products reach "
        f"here ({shape}); at that rate it would take {work['seconds_at_peak']:.4g} s"
    )


def _breakdown_lines(report: dict[str, Any]) -> list[str]:
    if "breakdown" not in report:
        return []
    apart = report["breakdown"]
    busy = apart["device_seconds"] or 1.0
    rows = [("kind of kernel", "seconds", "share")]
    rows += [(kind, f"{seconds:.4f}", f"{seconds / busy:.1%}") for kind, seconds in apart["seconds"].items()]
    rows.append(("all, and the run's time", f"{apart['device_seconds']:.4f}", f"{apart['wall_seconds']:.4f}"))
    return ["", *_columns(rows)]
