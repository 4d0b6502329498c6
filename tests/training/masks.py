"""Blocks of attention as the mask that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from diag_core.attention import Blocks


def dense(blocks: Blocks, tokens: int) -> Tensor:
    """[N,N] bool, True where a token (row) attends."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for own, seen in blocks.runs:
        for part in seen:
            mask[own, part] = True
    return mask
