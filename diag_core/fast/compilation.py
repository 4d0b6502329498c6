"""Feed-forward layers by torch.compile, for those who ask for them: what is between the two products becomes part of
one of them, and kernels are chosen by measurement. torch keeps what it compiled on the disk for the next start, in
TORCHINDUCTOR_CACHE_DIR or the folder for temporary files.

Legend: B batch, N tokens, D width, E width between the products.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import FusedBlock

_MODE = "max-autotune-no-cudagraphs"  # graphs are captured around whole forwards


class CompiledBlock(FusedBlock):
    """As `FusedBlock`; all blocks share what is compiled."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.ffn = self._ffn

    def _ffn(self, x: Tensor) -> Tensor:
        up, _, down = self.block.ffn
        return _compiled()(x, up.weight, up.bias, down.weight, down.bias)


def cpp_compiler() -> bool:
    """Whether there is one that torch.compile takes: on Windows it looks for Microsoft's alone."""
    names = ("cl",) if os.name == "nt" else ("c++", "g++", "clang++")
    return any(map(shutil.which, (os.environ.get("CXX", names[0]), *names)))


def compiler_missing(model: Any) -> str | None:
    """Why nothing can be compiled for a model here, or None."""
    device = model.patch_embedding.weight.device
    if device.type == "cpu" and not cpp_compiler():
        return "it takes a C++ compiler (g++)"
    if device.type == "cuda" and not _triton():
        return "it takes the package triton"
    between = model.blocks[0].ffn[1]
    if not isinstance(between, torch.nn.GELU) or between.approximate != "tanh":
        return "its feed-forward layers are not those of Wan"
    return None


def _triton() -> bool:
    from torch.utils._triton import has_triton_package

    return bool(has_triton_package())


@cache
def _compiled() -> Callable[..., Tensor]:
    fused: Any = torch.compile(_ffn, dynamic=False, mode=_MODE)
    return fused


def _ffn(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """x [B,N,D], up [E,D] and down [D,E] with biases [E] and [D] -> [B,N,D]"""
    return F.linear(F.gelu(F.linear(x, up, up_bias), approximate="tanh"), down, down_bias)
