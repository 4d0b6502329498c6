"""Regression to the frozen teacher's rollout on the same noise: latents (L_reg) and their motion (L_reg^flow).

Legend: B samples, F latent frames, P = F - 1 pairs of neighbours; latents [B,C,F,H,W].

The paper compares motion through a small convolutional head. Here the motion feature is dx itself, the difference of
neighbouring latent frames. A head trained by this loss alone has a trivial optimum, features of zero; one that is never
trained adds a fixed linear map and no knowledge of motion; and the public code's heads, initialised to zero beside a
skip connection and in no optimizer, are dx as well.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .dmd import at_least_float32
from .flow import differences


def regression_loss(x: Tensor, teacher_x0: Tensor) -> Tensor:
    """Mean squared error between the student's x0 and the frozen teacher's last-step x0, both [B,C,F,H,W]."""
    return F.mse_loss(at_least_float32(x), at_least_float32(teacher_x0).detach())


def flow_regression_loss(x: Tensor, teacher_x0: Tensor) -> Tensor:
    """Mean squared error between their motion features dx [B,C,P,H,W].

    Raises:
        ValueError: fewer than two latent frames.
    """
    return F.mse_loss(differences(x), differences(teacher_x0).detach())
