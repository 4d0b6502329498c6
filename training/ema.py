"""Exponential moving average of a model's parameters, kept in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        """Goes on from a saved average, on the device that this one is on."""
        self.average = {name: average[name].to(own.device, copy=True) for name, own in self.average.items()}
        self.updates = updates

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with the average for its parameters, whose own come back unchanged."""
        parameters = dict(model.named_parameters())
        own = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self.average[name].to(p.dtype)
            yield
        finally:
            for name, p in parameters.items():
                p.data = own[name]
