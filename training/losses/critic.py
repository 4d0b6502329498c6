"""The critic's loss: flow matching on the student's own samples.

Legend: latents [B,C,F,H,W].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .dmd import at_least_float32


def critic_loss(flow: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity: `flow` predicted at (1 - sigma) x0 + sigma noise, against noise - x0."""
    target = at_least_float32(noise) - at_least_float32(x0)
    return F.mse_loss(at_least_float32(flow), target.detach())
