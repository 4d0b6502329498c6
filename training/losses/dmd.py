"""Distribution matching distillation (DMD, arXiv 2311.18828; its form for causal video is Self Forcing's).

Legend: B samples; the other axes are free, latents are [B,C,F,H,W]. `x` is the student's clean estimate, `fake_x0` the
critic's and `real_x0` the teacher's estimate from the same noised x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def dmd_gradient(x: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """(fake_x0 - real_x0) / mean|x - real_x0|, the mean over all axes but the batch; what is not finite becomes 0.

    Without gradient, in float32 at least. Same shape as `x`.
    """
    x, fake_x0, real_x0 = at_least_float32(x), at_least_float32(fake_x0), at_least_float32(real_x0)
    distance = (x - real_x0).abs().mean(dim=tuple(range(1, x.dim())), keepdim=True)
    return torch.nan_to_num((fake_x0 - real_x0) / distance, nan=0.0, posinf=0.0, neginf=0.0)


def dmd_loss(x: Tensor, g: Tensor) -> Tensor:
    """0.5 MSE(x, stop(x - g)): a scalar whose gradient by x is g / x.numel()."""
    x = at_least_float32(x)
    return 0.5 * F.mse_loss(x, (x - g).detach())
