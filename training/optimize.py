"""AdamW with a changing learning rate and a limit on the gradient's norm, for one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .parallelize import trained_weights

Losses = tuple[Tensor, dict[str, Tensor]]
"""(what is minimised, what is logged): scalars, the latter without graph"""


LearningRate = Callable[[int], float]
"""steps done -> learning rate of the next"""


def warming_up(highest: float, steps: int) -> LearningRate:
    """Rises linearly from 0 over so many steps, and stays."""
    return lambda done: highest * min(1.0, (done + 1) / max(1, steps))


class Optimizer:
    """Steps one model. The learning rate goes by the optimizer's own steps, so their number is part of the state.

    Args:
        model: sharded already, if it is to be; parameters that ask for gradients are trained.
        clip: largest gradient norm, of all shards together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: LearningRate,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
    ) -> None:
        self.weights = trained_weights(model)
        self.learning_rate, self.clip = learning_rate, clip
        self.steps = 0
        self.adam = torch.optim.AdamW(
            self.weights.values(), lr=learning_rate(0), betas=betas, weight_decay=weight_decay, fused=True
        )
        # AdamW makes these at its first step. A saved state is read into what is there, so they are made now.
        for p in self.weights.values():
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            moments = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.adam.state[p] = {"step": step, **moments}

    def step(self, parts: Iterable[Losses], count: int = 1) -> tuple[dict[str, Tensor], Tensor]:
        """One step on the mean loss of the parts of a batch, whose graphs live one after another.

        Args:
            parts: what the forwards give, each asked for when the graph of the one before is gone.
            count: how many there will be.

        Returns:
            means of what is logged, and the gradient's norm before the limit.
        """
        self.adam.zero_grad()
        logged: dict[str, list[Tensor]] = {}
        for loss, values in parts:
            (loss / count).backward()
            for name, value in values.items():
                logged.setdefault(name, []).append(value.detach())
        weights = list(self.weights.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        torch.nn.utils.clip_grads_with_norm_(weights, self.clip, norm)
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate(self.steps)
        self.steps += 1
        self.adam.step()
        self.adam.zero_grad()
        return {name: torch.stack(values).mean() for name, values in logged.items()}, norm

    def state_dict(self) -> dict[str, Any]:
        """Live tensors by the names of weights."""
        return {"steps": self.steps, "adam": {name: dict(self.adam.state[p]) for name, p in self.weights.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, p in self.weights.items():
            for key, own in self.adam.state[p].items():
                own.copy_(state["adam"][name][key])
