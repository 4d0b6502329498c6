"""The two scores' opinions of a student's video, at noise levels drawn for the purpose.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diag_core.noise_schedule import SCHEDULE_TIMESTEPS, add_noise, shift_sigma, x0_from_flow

from .precision import Forward, estimate_x0, guided_flow


@dataclass(frozen=True, kw_only=True)
class NoiseLaw:
    """Levels at which videos are noised for the scores and for the critic."""

    shift: float = 5.0
    """of the levels, drawn uniformly before it"""
    lowest: float = 20.0
    """timestep, 0..1000 after the shift"""
    highest: float = 980.0
    """timestep, likewise"""

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"noise law: shift must be above 0, got {self.shift}")
        if not 0 < self.lowest <= self.highest <= SCHEDULE_TIMESTEPS:
            raise ValueError(
                "noise law: timesteps lie above 0 and at most at 1000, lowest first, got "
                f"{self.lowest} and {self.highest}"
            )

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """One sigma [B] a sample: an integer schedule timestep in [0,1000), shifted, clamped."""
        u = torch.randint(int(SCHEDULE_TIMESTEPS), (batch,), generator=generator) / SCHEDULE_TIMESTEPS
        return shift_sigma(u, self.shift).clamp(self.lowest / SCHEDULE_TIMESTEPS, self.highest / SCHEDULE_TIMESTEPS)


@dataclass(frozen=True)
class Estimates:
    """Clean latents [B,C,F,H,W] that the critic and the teacher read from the same noised video."""

    fake: Tensor
    real: Tensor


@torch.no_grad()
def estimates(
    x: Tensor,
    *,
    fake_score: Forward,
    real_score: Forward,
    context: Tensor,
    negative: Tensor,
    cfg: float,
    sigma_B: Tensor,
    noise: Tensor,
    precision: torch.dtype,
) -> Estimates:
    """What both scores make of `x` at `sigma_B`: the critic under the prompt alone, the teacher guided.

    Args:
        x, noise: [B,C,F,H,W].
        negative: [1,L,text_dim], the prompt that guidance leads away from.
        cfg: other + cfg (prompt - other); 4 is the same as prompt + 3 (prompt - other).
    """
    sigma = sigma_B[:, None, None, None, None]
    x_t = add_noise(x, noise, sigma)
    flow = guided_flow(real_score, x_t, sigma_B, context, negative, cfg, precision=precision)
    return Estimates(
        fake=estimate_x0(fake_score, x_t, sigma_B, context, precision=precision), real=x0_from_flow(x_t, flow, sigma)
    )
