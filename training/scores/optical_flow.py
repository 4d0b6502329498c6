"""Motion seen without following centres: dense optical flow over what each digit covers (OpenCV).

Shapes: M digits, T pixel frames; covers [M,T,H,W] in 0..1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# Covers of fewer pixels than this (of 64x64) are not followed.
_LEAST_MASS = 8.0


def flow_steps(cover_MTHW: torch.Tensor) -> torch.Tensor:
    """Displacement [M,T-1,2] of each digit from one pixel frame to the next, (x, y) in pixels: the mean of the dense
    flow of its cover (DIS, arXiv 1603.03590) over the pixels that it covers. 0 where a digit is not seen.

    Unlike the centre of the cover, it sees a shape that changes in place as still, and a jump as no motion.

    Raises ValueError when OpenCV is not installed."""
    cv2 = _import_cv2()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    images = (cover_MTHW.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    least = _LEAST_MASS * cover_MTHW.shape[-1] ** 2 / 64**2
    steps = np.zeros((images.shape[0], images.shape[1] - 1, 2), dtype=np.float32)
    for m, video in enumerate(images):
        for t in range(len(video) - 1):
            weight = video[t].astype(np.float32) / 255
            if weight.sum() >= least and video[t + 1].sum() / 255 >= least:
                flow_HW2 = dis.calc(video[t], video[t + 1], None)
                steps[m, t] = (flow_HW2 * weight[..., None]).sum((0, 1)) / weight.sum()
    return torch.from_numpy(steps)


def flow_tracks(steps_MT2: torch.Tensor) -> torch.Tensor:
    """Paths [M,T,2] from 0 that the displacements [M,T-1,2] add up to."""
    return torch.cat([torch.zeros_like(steps_MT2[:, :1]), steps_MT2.cumsum(1)], dim=1)


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"optical flow needs OpenCV: pip install opencv-python-headless ({error})") from error
    return cv2
