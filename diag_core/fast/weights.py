"""A DiT's weights as the fast path wants them: q, k and v of self-attention as one matrix.

The fused tensor owns the storage and the model's own parameters become views of it: there is no second copy, and the
plain path still runs over the same model.

Legend: D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FastBlock:
    """One transformer block. Weights are [out, in]."""

    qkv_weight: Tensor
    """[3D, D]"""
    qkv_bias: Tensor
    """[3D]"""
    block: Any
    """the block itself, whose other weights are used as they are"""

    @classmethod
    @torch.no_grad()
    def of(cls, block: Any) -> FastBlock:
        """Fuses a block in place; one that is fused already is taken as it is."""
        attn = block.self_attn
        parts = (attn.q, attn.k, attn.v)
        weight, bias = (_fused([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
        return cls(weight, bias, block)


def _fused(parts: list[nn.Parameter]) -> Tensor:
    """The parts on top of each other as one tensor, of which they are views afterwards."""
    first, rows, size = parts[0].data, parts[0].shape[0], parts[0].numel()
    storage, start = first.untyped_storage(), first.storage_offset()
    if all(
        part.data.untyped_storage().data_ptr() == storage.data_ptr()
        and part.data.storage_offset() == start + i * size
        and part.data.is_contiguous()
        for i, part in enumerate(parts)
    ):
        whole = (len(parts) * rows, *first.shape[1:])
        return first.as_strided(whole, first.stride(), start)
    fused = torch.cat([part.data for part in parts])
    for i, part in enumerate(parts):
        part.data = fused[i * rows : (i + 1) * rows]
    return fused
