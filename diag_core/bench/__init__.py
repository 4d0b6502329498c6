"""Measures sampling: time, memory and the arithmetic in it. Weights are random throughout."""

from __future__ import annotations

from .breakdown import Breakdown, kind_of, take_apart
from .measure import LongResult, Spread, VideoResult, measure_long, measure_video
from .peak import Peak, matrix_peak
from .report import long_report, long_table, save_report, video_report, video_table
from .rig import Rig
from .setting import PRESETS, BenchSetting
from .work import Work, forward_work, prompt_work, video_work

__all__ = [
    "PRESETS",
    "BenchSetting",
    "Breakdown",
    "LongResult",
    "Peak",
    "Rig",
    "Spread",
    "VideoResult",
    "Work",
    "forward_work",
    "kind_of",
    "long_report",
    "long_table",
    "matrix_peak",
    "measure_long",
    "measure_video",
    "prompt_work",
    "save_report",
    "take_apart",
    "video_report",
    "video_table",
    "video_work",
]
