"""Blocks whose small operations are fused, where a recipe asks for it.

Only forwards over whole videos are worth it, whose shapes are few: those of the teacher, the critic, and ODE
initialisation. A rollout's forwards see a cache that grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.fast.compilation import cpp_compiler

_SHAPES = 64
"""that one process may meet, which runs many stages with batches of their own. Beyond PyTorch's own 8 it would go on
without fusing, and say so in a warning alone"""


def compile_blocks(model: WanDiT) -> None:
    """Fuses the small operations of every block by torch.compile, in place: on a CPU twice as fast, and with other last
    bits. The first block of a shape is compiled for all. What gathers a sharded model's weights stays between them.

    Raises:
        ValueError: there is no C++ compiler to do it with.
    """
    require_compiler()
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _SHAPES)
    if model.device.type == "cpu":
        model.attend = _plain_attention
    for block in model.blocks:
        inner: Any = getattr(block, "_checkpoint_wrapped_module", block)
        inner.forward = _fused_over_whole_videos(inner.forward)


def require_compiler() -> None:
    """Raises ValueError where torch.compile has nothing to do its work with, on a GPU or not."""
    if not cpp_compiler():
        raise ValueError("recipe: compiled=true needs a C++ compiler (g++); install one, or set compiled=false")


def _fused_over_whole_videos(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward, compiled where there is no cache. What has one are the rollouts of sample videos, by the same
    model: they would be compiled anew for each length of the cache."""
    fused: Any = torch.compile(forward, dynamic=False)

    def run(x: Tensor, **inputs: Any) -> Tensor:
        result: Tensor = (fused if inputs.get("past") is None else forward)(x, **inputs)
        return result

    return run


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `diag_core.attention.Attention` says, in matrix products that torch.compile fuses the rest into: on a CPU
    PyTorch's own attention takes a quarter of a training step for its gradient, this a tenth."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2)
