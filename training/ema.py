"""Exponential moving average of a model's parameters, kept in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Average of the parameters; the decay rises from 0 as (1 + n) / (10 + n), so that the first steps do not linger.

    Args:
        model: its parameters are the first average.
        decay: the largest decay.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [parameters[n].float() for n in self.average], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load(self, average: dict[str, Tensor], updates: int) -> None:
        self.average, self.updates = {name: tensor.clone() for name, tensor in average.items()}, updates
