"""A mean, or another statistic, with its bootstrap interval over videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_PART = 500
"""resamples drawn at once: bounds the memory"""


@dataclass(frozen=True)
class Interval:
    """A statistic of N videos and the bounds within which it stays when videos are drawn anew."""

    value: float
    lower: float
    upper: float
    videos: int
    """those whose value is known"""

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON: rounded, and None for what is not finite."""
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper}
        return {k: round(v, 4) if np.isfinite(v) else None for k, v in numbers.items()} | {"videos": self.videos}


def bootstrap_mean(values_N: torch.Tensor, **options: Any) -> Interval:
    """The mean of values [N], NaN left out; options as in `bootstrap`."""
    return bootstrap(values_N, lambda drawn: drawn.mean(1), **options)


def bootstrap_median(values_N: torch.Tensor, **options: Any) -> Interval:
    """The lower median of values [N], NaN left out. Infinite values count as the largest."""
    # The lower one is itself a value: between a number and infinity there is no middle.
    return bootstrap(values_N, lambda drawn: np.sort(drawn, axis=1)[:, (drawn.shape[1] - 1) // 2], **options)


def bootstrap(
    values_N: torch.Tensor,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A statistic of values [N], NaN left out, with its two-sided percentile bootstrap interval.

    Args:
        statistic: [resamples,N] -> [resamples].

    Raises:
        ValueError: no shape [N], or a confidence that is none.
    """
    if values_N.dim() != 1:
        raise ValueError(f"values need the shape [N], got {list(values_N.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    known = values_N[~values_N.isnan()].double().numpy()
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [
            statistic(known[rng.integers(len(known), size=(min(_PART, resamples - start), len(known)))])
            for start in range(0, resamples, _PART)
        ]
    )
    # Ends are values that occurred: between a number and infinity there is nothing to interpolate.
    lower, upper = (
        float(np.quantile(drawn, q, method="nearest")) for q in ((1 - confidence) / 2, (1 + confidence) / 2)
    )
    return Interval(float(statistic(known[None])[0]), lower, upper, len(known))
