"""What of a frame is not ground: how much of each pixel digits cover, and where that is.

Shapes: N frames [N,3,H,W] in -1..1; covers [N,H,W] in 0..1; crops [N,1,32,32].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CROP = 32
_ROWS = 64
# A digit's colour lies at least 1.3 from any ground; half of that tells a faint digit from an empty frame's noise.
_LEAST_CONTRAST = 0.65
# The smallest digit, a thin 1, has at least as many pixels that its colour fills completely, in frames of 64x64.
_FULL_PIXELS = 40


def foreground(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each pixel is digit, [N,H,W] in 0..1, and the ground's colour [N,3] in -1..1."""
    flat = frames.float().flatten(2)
    # Every fifth pixel is plenty for a median, and 5 runs through all rows and columns of 64 or 128.
    ground_N3 = flat[:, :, ::5].median(dim=-1).values
    distance = (flat - ground_N3[:, :, None]).norm(dim=1)
    pixels = round(_FULL_PIXELS * distance.shape[-1] / _ROWS**2)
    full = distance.topk(pixels, dim=-1).values.mean(-1, keepdim=True).clamp_min(_LEAST_CONTRAST)
    # Below a fifth of the contrast is noise of the ground and ringing around the strokes.
    cover = ((distance / full - 0.2) / 0.7).clamp(0, 1)
    return cover.unflatten(-1, frames.shape[-2:]), ground_N3


def centroids(cover_NHW: torch.Tensor) -> torch.Tensor:
    """Centres of mass [N,2] as (x, y) in pixels; the middle of the frame where there is no foreground."""
    _, height, width = cover_NHW.shape
    # A grain of weight everywhere: it defines the empty frame and moves no other by more than a hundredth of a pixel.
    weight = cover_NHW + 1e-6
    mass = weight.sum((1, 2))
    x = (weight.sum(1) * (torch.arange(width) + 0.5)).sum(-1) / mass
    y = (weight.sum(2) * (torch.arange(height) + 0.5)).sum(-1) / mass
    return torch.stack([x, y], dim=-1)


def centred_crops(cover_NHW: torch.Tensor) -> torch.Tensor:
    """Squares [N,1,32,32] around the centres of mass, to the whole pixel; zeros beyond the frame.

    Larger frames are shrunk to rows of 64 pixels first, the size that the classifier knows."""
    n, height = cover_NHW.shape[:2]
    if height > _ROWS:
        cover_NHW = F.interpolate(cover_NHW[:, None], scale_factor=_ROWS / height, mode="area")[:, 0]
    half = CROP // 2
    padded = F.pad(cover_NHW, (half, half, half, half))
    corner = centroids(cover_NHW).round().long()
    span = torch.arange(CROP)
    rows = (corner[:, 1, None] + span)[:, :, None]
    columns = (corner[:, 0, None] + span)[:, None, :]
    return padded[torch.arange(n)[:, None, None], rows, columns][:, None]
