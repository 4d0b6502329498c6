"""Kinds of sockets that ComfyUI does not have."""

from __future__ import annotations

from comfy_api.latest import io

SCHEDULE = io.Custom("DIAGDISTILL_SCHEDULE")  # carries a diag_core.DiagonalSchedule
