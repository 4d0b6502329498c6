"""The device that a command asks for."""

from __future__ import annotations

import torch


def device_of(name: str | None) -> torch.device:
    """cpu, cuda, cuda:1, ...; None takes the accelerator where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device {name}: there is no such device; use cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device
