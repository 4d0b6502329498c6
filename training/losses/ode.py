"""The loss of ODE initialisation (CausVid, arXiv 2412.07772): the clean end of a teacher's trajectory from its points.

Legend: latents [B,C,F,H,W]; sigma broadcasts against them, such as [B,1,F,1,1].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diag_core.noise_schedule import x0_from_flow

from .dmd import at_least_float32


def ode_loss(flow: Tensor, point: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error between the x0 that `flow` points at from `point` at `sigma`, and the trajectory's end."""
    x0 = x0_from_flow(at_least_float32(point), flow, sigma)
    return F.mse_loss(x0, at_least_float32(clean).detach())
