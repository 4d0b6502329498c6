"""Every score of every stage of a distillation, as a Markdown table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from diag_core.checkpoint import CheckpointSettings

from ..evaluate import motion_kept

_ROWS = {
    "digit": ("digits right", ".1%"),
    "digit_alone": ("... of videos with one digit", ".1%"),
    "digit_pairs": ("... of videos with two digits", ".1%"),
    "direction": ("directions right, by centre", ".1%"),
    "flow_direction": ("directions right, by optical flow", ".1%"),
    "motion": ("whole motion right", ".1%"),
    "colour": ("colours right", ".1%"),
    "path_error": ("distance from the path asked for, pixels", ".2f"),
    "amplitude": ("motion amplitude by centre, pixels a frame", ".3f"),
    "flow_amplitude": ("motion amplitude by optical flow, pixels a frame", ".3f"),
    "colour_error": ("colour error, RMS of 0..1", ".4f"),
    "ground_error": ("ground error, RMS of 0..1", ".4f"),
    "frechet": ("Frechet distance of frames", ".2f"),
}
_KEPT = {
    "amplitude": "motion amplitude kept of the teacher's, by centre",
    "flow_amplitude": "motion amplitude kept of the teacher's, by optical flow",
}
_DRIFT = {
    "digit": ("drift of digits right, last chunk less first", "+.1%"),
    "saturation": ("drift of saturation", "+.3f"),
    "contrast": ("drift of contrast", "+.3f"),
    "colour_error": ("drift of colour error", "+.3f"),
}


def forwards(settings: CheckpointSettings, chunks: int = 7) -> int:
    """Denoising forwards of a whole video of a causal checkpoint, or of a bidirectional one; guidance doubles them."""
    return settings.diagonal_schedule().forwards(chunks if settings.causal else 1) * (1 if settings.cfg == 1 else 2)


def seconds_of(sample: Callable[[], object], runs: int = 3) -> float:
    """Median of `runs` after one that is not counted."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        sample()
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def score_table(
    reports: dict[str, dict[str, Any]], forwards_of: dict[str, int], seconds: dict[str, float]
) -> list[str]:
    """Lines of the table: a column a stage, mean and spread over the seeds.

    Args:
        reports: stage -> result of `evaluate_videos`; first the teacher's, whose motion the others' is set against.
        forwards_of: stage -> forwards of a video.
        seconds: stage -> of a video, decoding included.
    """
    stages = list(reports)
    lines = ["| | " + " | ".join(stages) + " |", "|---" * (len(stages) + 1) + "|"]

    def row(title: str, cells: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    row("forwards of a video", [str(forwards_of[stage]) for stage in stages])
    row("seconds of a video", [f"{seconds[stage]:.2f}" for stage in stages])
    for key, (title, form) in _ROWS.items():
        if all(key in report["scores"] for report in reports.values()):
            row(title, [_with_spread(report, key, form) for report in reports.values()])
    first = next(iter(reports.values()))
    for key, title in _KEPT.items():
        row(title, [f"{motion_kept(report, first)[key]:.0%}" for report in reports.values()])
    for key, (title, form) in _DRIFT.items():
        row(title, [format(report["drift"][key], form) for report in reports.values()])
    return lines


def _with_spread(report: dict[str, Any], key: str, form: str) -> str:
    spread = f" ± {report['spread'][key]:{form}}" if len(report["seeds"]) > 1 else ""  # one seed has none
    return f"{report['scores'][key]:{form}}{spread}"


def load_reports(folder: Path, files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the stage `evaluate` wrote into an output folder; `files` names each stage's checkpoint.

    Raises ValueError for one that has not been scored."""
    reports = {}
    for stage, file in files.items():
        path = folder / "scores" / f"{Path(file).stem}.json"
        if not path.exists():
            raise ValueError(f"{path} is missing: run the stage evaluate first")
        reports[stage] = json.loads(path.read_text(encoding="utf-8"))
    return reports
