"""AdamW with a warm-up and a limit on the gradient's norm, for one model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """Steps one model. The warm-up counts the optimizer's own steps, so it is part of the state.

    Args:
        clip: largest gradient norm.
        warmup_steps: over which the learning rate rises from 0.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
        warmup_steps: int,
    ) -> None:
        self.parameters = list(model.parameters())
        self.learning_rate, self.clip, self.warmup_steps = learning_rate, clip, warmup_steps
        self.steps = 0
        self.adam = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )

    def step(self, loss: Tensor) -> Tensor:
        """Backward and one step; returns the gradient's norm before the limit."""
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.steps += 1
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * min(1.0, self.steps / max(1, self.warmup_steps))
        self.adam.step()
        self.adam.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.adam.load_state_dict(state["adam"])
