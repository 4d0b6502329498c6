"""Which fused operations run: Triton's, or plain PyTorch's."""

from __future__ import annotations

import logging
from types import ModuleType

import torch

from . import torch_ops

log = logging.getLogger(__name__)

KERNELS = ("auto", "triton", "torch")


def operations(name: str, device: torch.device) -> ModuleType:
    """The module of fused operations: `kernels` or `torch_ops`.

    Args:
        name: "triton", "torch", or "auto": Triton on a GPU that has it.

    Raises:
        ValueError: Triton asked for and not there.
    """
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return torch_ops
    try:
        from . import kernels
    except ImportError as error:
        if name == "auto":
            log.warning("the fast path runs without its Triton kernels: %s", error)
            return torch_ops
        raise ValueError(f"kernels='triton' needs the package triton ({error})") from error
    return kernels
