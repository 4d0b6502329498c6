"""Flow distribution matching: DMD on the motion between neighbouring latent frames (the paper's L_DMD^flow).

Legend: B samples, F latent frames, P = F - 1 pairs of neighbours; latents [B,C,F,H,W].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dmd import at_least_float32, dmd_gradient

DYNAMIC_SHARE = 0.7
GROWTH = 1.2


def differences(x: Tensor) -> Tensor:
    """Motion between neighbours: x[f + 1] - x[f] along F, [B,C,P,H,W].

    Raises:
        ValueError: fewer than two latent frames.
    """
    if x.dim() != 5 or x.shape[2] < 2:
        raise ValueError(f"motion needs latents [B,C,F,H,W] with at least 2 latent frames, got {list(x.shape)}")
    return at_least_float32(x).diff(dim=2)


def flow_gradient(x: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """`dmd_gradient` of the differences, with their own normaliser: [B,C,P,H,W], without gradient."""
    return dmd_gradient(differences(x), differences(fake_x0), differences(real_x0))


@torch.no_grad()
def frame_weights(g_m: Tensor) -> Tensor:
    """Weights [B,P] of the pairs: later pairs weigh more, and more where the gradient of motion is concentrated.

    Pair j weighs 0.7 dyn_j + 0.3 exp_j: dyn_j = 1 + (m_0 + .. + m_j) / (m_0 + .. + m_last), m_j the mean square of the
    pair's gradient, and exp_j = 1.2^j over its mean. Without any gradient dyn is 1.
    """
    m_BP = at_least_float32(g_m).square().mean(dim=(1, 3, 4))
    total = m_BP.sum(1, keepdim=True)
    dynamic = 1 + torch.where(total > 0, m_BP.cumsum(1) / total, torch.zeros_like(m_BP))
    growth = GROWTH ** torch.arange(m_BP.shape[1], dtype=m_BP.dtype, device=m_BP.device)
    return DYNAMIC_SHARE * dynamic + (1 - DYNAMIC_SHARE) * growth / growth.mean()


def flow_loss(x: Tensor, g_m: Tensor, w: Tensor | None = None) -> Tensor:
    """Mean of w (dx - stop(dx - g_m))^2 over all elements; `w` [B,P] is 1 when left out."""
    dx = differences(x)
    squared = (dx - (dx - g_m).detach()).square()
    return squared.mean() if w is None else (w[:, None, :, None, None] * squared).mean()
