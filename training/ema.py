"""Exponential moving average of what is trained of a model, kept in float32, and sharded where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .distributed import local
from .parallelize import trained_weights


class EMA:
    """Average of trained weights, in which the first updates do not linger.

    Args:
        model: its weights are the first average, those of them that ask for gradients.
        decay: the largest decay.
        start: updates during which the average is a copy of the weights; after them the decay is `decay`. With 0 it
            rises to that instead, as (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, decay: float, start: int = 0) -> None:
        self.decay, self.start = decay, start
        self.updates = 0
        self.average = {name: p.detach().float().clone() for name, p in trained_weights(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        rising = (1 + self.updates) / (10 + self.updates) if self.start == 0 else float(self.updates > self.start)
        decay = min(self.decay, rising)
        weights = trained_weights(model)
        averages = [local(average) for average in self.average.values()]
        torch._foreach_lerp_(averages, [local(weights[name]).float() for name in self.average], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load(self, average: dict[str, Tensor], updates: int) -> None:
        """Goes on from a saved average, on the device that this one is on."""
        for name, own in self.average.items():
            own.copy_(average[name])
        self.updates = updates

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The model with the average in its weights, whose own values come back unchanged.

        They are copied in and out: whoever holds the parameters' storage, as sharding does, must see them.
        """
        weights = trained_weights(model)
        own = {name: p.detach().clone() for name, p in weights.items()}
        try:
            _fill(weights, self.average)
            yield
        finally:
            _fill(weights, own)


@torch.no_grad()
def _fill(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, p in weights.items():
        p.copy_(values[name])
