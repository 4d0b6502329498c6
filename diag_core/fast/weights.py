"""A DiT's weights as the fast path wants them: q, k and v of self-attention as one matrix.

The fused tensor owns the storage and the model's own parameters become views of it: there is no second copy, the
plain path still runs over the same model, and whoever moves or replaces the parameters frees the fused tensor by it.

Legend: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]


class FastBlock(Protocol):
    """The linear layers of one transformer block, each a function of x [B,N,D]."""

    @property
    def block(self) -> Any:
        """The block itself, whose norms and modulation are used as they are."""

    @property
    def qkv(self) -> Linear:
        """q, k and v of self-attention side by side, [B,N,3D]."""

    @property
    def self_out(self) -> Linear: ...

    @property
    def cross_q(self) -> Linear: ...

    @property
    def cross_out(self) -> Linear: ...

    @property
    def ffn(self) -> Linear: ...


class FusedBlock:
    """The block's own linear layers, q, k and v of self-attention fused in place."""

    def __init__(self, block: Any) -> None:
        self.block = block
        fuse(block)
        self.self_out, self.cross_q, self.cross_out = block.self_attn.o, block.cross_attn.q, block.cross_attn.o
        self.ffn = block.ffn

    def qkv(self, x: Tensor) -> Tensor:
        return F.linear(x, *fused(self.block))


@torch.no_grad()
def fuse(block: Any) -> None:
    """Makes q, k and v of a block's self-attention views of one tensor, unless they are already."""
    for parts in _parts(block):
        if not _adjacent(parts):
            with torch.inference_mode(False):  # views that any later call may write to
                whole = torch.cat([part.data for part in parts])
                rows = parts[0].shape[0]
                for i, part in enumerate(parts):
                    part.data = whole[i * rows : (i + 1) * rows]


def fused(block: Any) -> tuple[Tensor, Tensor]:
    """Weight [3D,D] and bias [3D] of a fused block, without a copy."""
    weight, bias = (_whole(parts) for parts in _parts(block))
    return weight, bias


def weights_at(model: Any) -> tuple[int, ...]:
    """Where all weights of a model lie: what was captured or fused holds as long as this is the same."""
    return tuple(parameter.data_ptr() for parameter in model.parameters())


def _parts(block: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    linear = (block.self_attn.q, block.self_attn.k, block.self_attn.v)
    return [part.weight for part in linear], [part.bias for part in linear]


def _whole(parts: list[nn.Parameter]) -> Tensor:
    first, rows = parts[0].data, parts[0].shape[0]
    return first.as_strided((len(parts) * rows, *first.shape[1:]), first.stride())


def _adjacent(parts: list[nn.Parameter]) -> bool:
    """Whether the parts lie on top of each other in one storage."""
    first, size = parts[0].data, parts[0].numel()
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    return all(
        part.data.untyped_storage().data_ptr() == storage
        and part.data.storage_offset() == start + i * size
        and part.data.is_contiguous()
        for i, part in enumerate(parts)
    )
