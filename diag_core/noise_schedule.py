"""The noise law of a rectified flow: the schedule shift, and the maps between x0, noise, x and flow.

    sigma   noise level after the shift, 0 (clean) .. 1 (noise); the core's only unit
    s       schedule fraction before the shift, 0..1; 1000 s is the schedule timestep that step lists show
    x       (1 - sigma) x0 + sigma noise
    flow    noise - x0, so x0 = x - sigma flow

Latents are [B,16,F,H,W]; every function here works on any shape. `sigma` is a float, or a tensor that broadcasts
against the latents: [B,1,1,1,1] for one level a sample, [B,1,F,1,1] for one a latent frame.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

SCHEDULE_TIMESTEPS = 1000.0

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)


def shift_sigma(s: FloatOrTensor, shift: float) -> FloatOrTensor:
    """Schedule fraction 0..1 -> sigma 0..1:  shift s / (1 + (shift - 1) s), for shift > 0.

    Written so that 0 and 1 are fixed points exactly, whatever the shift.
    """
    return shift * s / (shift * s + (1 - s))


def sigma_from_schedule_timestep(t: FloatOrTensor, shift: float) -> FloatOrTensor:
    """Schedule timestep 0..1000 (before the shift) -> sigma 0..1."""
    return shift_sigma(t / SCHEDULE_TIMESTEPS, shift)


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """(1 - sigma) x0 + sigma noise, computed in float32 at least, returned in x0's dtype."""
    x0_wide, noise_wide, sigma = _widen(x0, noise, sigma)
    return ((1 - sigma) * x0_wide + sigma * noise_wide).to(x0.dtype)


def x0_from_flow(x: Tensor, flow: Tensor, sigma: float | Tensor) -> Tensor:
    """x - sigma flow: the clean latents that `flow` points at. Float32 at least inside, returned in x's dtype."""
    x_wide, flow_wide, sigma = _widen(x, flow, sigma)
    return (x_wide - sigma * flow_wide).to(x.dtype)


def _widen(a: Tensor, b: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
    """Bring the operands to one dtype of at least float32: bfloat16 would lose the small differences taken here."""
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype), sigma.to(dtype) if isinstance(sigma, Tensor) else sigma
