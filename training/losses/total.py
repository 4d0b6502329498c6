"""The generator's total loss (eq. 12 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """spatial L_dmd + regression L_reg + gamma (flow L_flow + L_flowreg); the defaults are the public code's.

    Raises:
        ValueError: a weight that is negative or not finite, or all of them zero.
    """

    spatial: float = 4.0
    """lambda_spatial, of distribution matching of the latents"""
    regression: float = 0.0
    """lambda_reg, of regression to the frozen teacher"""
    flow: float = 4.0
    """lambda_flow, of distribution matching of motion beside flow regression, whose own weight is 1"""
    gamma: float = 1.0
    """of both motion terms together; 0 turns motion off (the paper finds 1 best)"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"loss weights: {field.name} must be a number of 0 or more, got {value}")
        if not any((self.spatial, self.regression, self.gamma)):
            raise ValueError("loss weights: all are 0, so nothing would be trained; give one of them a value")

    @property
    def needs_teacher_rollout(self) -> bool:
        """Whether a term compares with the frozen regression teacher."""
        return self.regression > 0 or self.gamma > 0

    def terms(self) -> dict[str, float]:
        """What each term weighs in all; terms of weight 0 are left out, and need not be computed."""
        weights = {
            "dmd": self.spatial,
            "regression": self.regression,
            "flow": self.gamma * self.flow,
            "flow_regression": self.gamma,
        }
        return {name: weight for name, weight in weights.items() if weight}


def total_loss(weights: LossWeights, term: Callable[[str], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each term before its weight, detached.

    Args:
        term: name ("dmd", "regression", "flow", "flow_regression") -> its loss; asked only for terms that weigh.
    """
    losses = {name: term(name) for name in weights.terms()}
    total = sum(weight * losses[name] for name, weight in weights.terms().items())
    assert isinstance(total, Tensor)
    return total, {name: loss.detach() for name, loss in losses.items()}
