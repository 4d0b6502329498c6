"""Health of a run: what its samples look like beside what they are to be like, and the signs of collapse.

Users of this family of methods report static, flashing and over-saturated videos, and losses that turn to NaN. Each has
a number here and a limit; a run beyond one stops and says which.

Legend: N videos, T pixel frames; pixels [N,3,T,H,W] in -1..1, clamped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


class Collapse(RuntimeError):
    """A run that has gone wrong: names the sign, and what to do."""


@dataclass(frozen=True, kw_only=True)
class HealthLimits:
    """How far samples may be from those they are compared with, the teacher's on the same prompts or real ones, as
    ratios of means over videos.

    Raises:
        ValueError: limits that no video could keep.
    """

    static: float = 0.2
    """least motion"""
    flashing: float = 4.0
    """most motion"""
    saturated: float = 2.0
    """most saturation of colours"""
    washed_out: float = 0.25
    """least contrast"""
    harsh: float = 2.5
    """most contrast"""
    patience: int = 2
    """sample videos in a row that must be beyond a limit before the run stops"""

    def __post_init__(self) -> None:
        if not (0 <= self.static < 1 < self.flashing and 0 <= self.washed_out < 1 < self.harsh and self.saturated > 1):
            raise ValueError(
                "health limits are ratios: static and washed_out below 1, flashing, saturated and harsh "
                f"above 1, got {self}"
            )
        if self.patience < 1:
            raise ValueError(f"health limits: patience must be at least 1, got {self.patience}")


def pixel_health(pixels: Tensor) -> dict[str, float]:
    """Means over videos: motion (absolute change between neighbouring pixel frames), saturation (highest minus lowest
    colour channel), contrast (standard deviation of brightness within a frame); all of values in 0..1. Single frames
    have no motion."""
    shown = pixels.float().clamp(-1, 1).add(1).div(2)
    motion = {"motion": float(shown.diff(dim=2).abs().mean())} if shown.shape[2] > 1 else {}
    return motion | {
        "saturation": float((shown.amax(1) - shown.amin(1)).mean()),
        "contrast": float(shown.mean(1).flatten(2).std(2).mean()),
    }


def signs_of_collapse(
    health: Mapping[str, float], reference: Mapping[str, float], limits: HealthLimits, *, of: str = "the teacher's"
) -> list[str]:
    """What is wrong with samples, in words; nothing for healthy ones. Both mappings are of `pixel_health`; `of` says
    whose the second one is."""
    broken = [name for name in ("motion", "saturation", "contrast") if not math.isfinite(health.get(name, 0.0))]
    if broken:
        return [f"not a number: {', '.join(broken)} of the samples"]
    checks = (
        ("static", "motion", limits.static, "below", _LESS_STEPS),
        ("flashing", "motion", limits.flashing, "above", _SLOWER),
        ("saturated", "saturation", limits.saturated, "above", _SOFTER),
        ("washed out", "contrast", limits.washed_out, "below", _SLOWER),
        ("harsh", "contrast", limits.harsh, "above", _SOFTER),
    )
    signs = []
    for sign, name, limit, side, advice in checks:
        if name not in health:
            continue
        ratio = health[name] / max(reference[name], 1e-9)
        if ratio < limit if side == "below" else ratio > limit:
            signs.append(f"{sign}: {name} is {ratio:.2f} of {of}, {side} {limit:g}. {advice}")
    return signs


_LESS_STEPS = "Distilling, raise weights.gamma or train the critic more often (generator_every), from an earlier result"
_SLOWER = "Lower learning_rate; distilling, raise generator_every so that the critic keeps up"
_SOFTER = "Lower learning_rate; distilling, cfg too, or end with fewer steps: the longer a run, the more colours grow"


class HealthWatch:
    """Stops a run after `patience` samples in a row beyond a limit.

    Attributes:
        bad: how many in a row there have been.
    """

    def __init__(
        self, reference: Mapping[str, float], limits: HealthLimits, bad: int = 0, *, of: str = "the teacher's"
    ) -> None:
        self.reference, self.limits, self.bad, self.of = dict(reference), limits, bad, of

    def judge(self, step: int, health: Mapping[str, float]) -> list[str]:
        """The signs at iteration `step`.

        Raises:
            Collapse: they have been there too long.
        """
        signs = signs_of_collapse(health, self.reference, self.limits, of=self.of)
        self.bad = self.bad + 1 if signs else 0
        if self.bad >= self.limits.patience:
            raise Collapse(
                f"the run has collapsed at iteration {step}, {'; '.join(signs)}. If the samples look right to you, "
                "wider limits let it go on from the last saved state"
            )
        return signs


def require_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises Collapse for a loss or gradient norm that is no number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Collapse(
                f"the run has collapsed at iteration {step}, not a number: {name} is {value}. Lower learning_rate "
                "or clip, or use precision=fp32"
            )
