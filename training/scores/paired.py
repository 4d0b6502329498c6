"""Comparison of two ways to sample the same prompts from the same noise, with a bootstrap bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over prompts."""

    mean: float
    lower: float
    """with the confidence asked for, the true mean is not below this"""
    prompts: int

    def to_dict(self) -> dict[str, float | int]:
        return {"mean": self.mean, "lower": self.lower, "prompts": self.prompts}


def paired_difference(
    a_N: torch.Tensor, b_N: torch.Tensor, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """One-sided bootstrap bound of the mean difference: prompts are drawn with replacement, and the quantile
    1 - `confidence` of the resampled means is the bound.

    Args:
        a_N, b_N: scores of prompt n under each of the two, such as 1 for a digit read right.

    Raises:
        ValueError: different or no prompts, or a confidence that is none.
    """
    if a_N.shape != b_N.shape or a_N.dim() != 1 or len(a_N) == 0:
        raise ValueError(f"paired scores need one shape [N], got {list(a_N.shape)} and {list(b_N.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    difference_N = (a_N.double() - b_N.double()).numpy()
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            difference_N[rng.integers(len(difference_N), size=(count, len(difference_N)))].mean(1)
            for count in _parts(resamples, 500)
        ]
    )
    return PairedDifference(float(difference_N.mean()), float(np.quantile(means, 1 - confidence)), len(difference_N))


def _parts(total: int, largest: int) -> list[int]:
    return [min(largest, total - start) for start in range(0, total, largest)]
