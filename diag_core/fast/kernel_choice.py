"""Which fused operations run: Triton's, or plain PyTorch's."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch

from . import torch_ops

log = logging.getLogger(__name__)

KERNELS = ("auto", "triton", "torch")


def operations(name: str, device: torch.device) -> ModuleType:
    """The module of fused operations: `kernels` or `torch_ops`.

    Args:
        name: "triton", "torch", or "auto": Triton on a GPU where it runs.

    Raises:
        ValueError: Triton asked for and not there.
    """
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return torch_ops
    if name == "auto":
        return _those_that_run(device)
    try:
        from . import kernels
    except ImportError as error:
        raise ValueError(f"kernels='triton' needs the package triton ({error})") from error
    return kernels


@cache
def _those_that_run(device: torch.device) -> ModuleType:
    """By trying one, once a device: at its first launch Triton builds C code, which takes a compiler and Python.h."""
    try:
        from . import kernels

        with torch.cuda.device(device):
            kernels.rms_norm(torch.zeros(1, 1, 16, device=device), torch.ones(16, device=device), 1e-6)
    except Exception as error:  # a compiler fails in its own ways
        cause = (str(error) or "no reason given").splitlines()[0]
        log.warning("the fast path runs without its Triton kernels: %s: %s", type(error).__name__, cause)
        return torch_ops
    return kernels
