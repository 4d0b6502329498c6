"""Which attention back end is fastest here, by measurement: it depends on card, precision, and what is installed.

Legend: B batch, N query tokens, M key tokens, H heads, K head width.
"""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import NAMES, Attention, attention_backend, sdpa

log = logging.getLogger(__name__)

# Kernels that round more than the others are the user's to choose.
_EXACT = tuple(name for name in NAMES if name not in ("auto", "sage"))
_RUNS = 5


@dataclass(frozen=True)
class AttentionChoice:
    name: str
    attend: Attention
    seconds: dict[str, float]
    """median of every back end that ran and agreed with PyTorch's own"""
    refused: dict[str, str]
    """the others, and why"""

    def text(self) -> str:
        """One line for a log."""
        times = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in self.seconds.items())
        return f"attention: {self.name} ({times})"


@torch.no_grad()
def fastest_attention(
    *, queries: int, keys: int, num_heads: int, head_dim: int, batch: int, dtype: torch.dtype, device: torch.device
) -> AttentionChoice:
    """Times every back end on q [B,N,H,K] and k, v [B,M,H,K] of the sizes that a full window has.

    One whose result differs from PyTorch's own by more than rounding (relative, root mean square) is not taken.
    """
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(batch, tokens, num_heads, head_dim, generator=generator, device=device).to(dtype)
        for tokens in (queries, keys, keys)
    )
    right = sdpa(q, k, v).float()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    backends: dict[str, Attention] = {}
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in _EXACT:
        try:
            attend = attention_backend(name)
            error = float((attend(q, k, v).float() - right).norm() / right.norm())
            if not error <= tolerance:
                raise ValueError(f"its result differs by {error:.3g} of PyTorch's")
            seconds[name] = _time(attend, q, k, v)
        except Exception as failure:  # packages refuse in their own ways, by assertions too
            refused[name] = (str(failure) or type(failure).__name__).splitlines()[0]
            continue
        backends[name] = attend
    best = min(seconds, key=seconds.__getitem__)
    choice = AttentionChoice(best, backends[best], seconds, refused)
    log.info(choice.text())
    return choice


def _time(attend: Attention, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Median seconds."""
    times = []
    for _ in range(_RUNS):
        _wait(q)
        start = time.perf_counter()
        attend(q, k, v)
        _wait(q)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
