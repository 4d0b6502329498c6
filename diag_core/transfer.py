"""Copies to a device that do not wait for what it is at."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`. From a CPU to a GPU it goes by pinned memory: any other copy waits for the GPU."""
    sent = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if sent else tensor).to(device, dtype or tensor.dtype, non_blocking=sent)
