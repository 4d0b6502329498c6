"""Rotary position embedding over latent frame, row and column.

Legend: N tokens, H heads, D head width. Adjacent pairs of a head are rotated; D/2 - 2(D/6) pairs by the latent frame,
D/6 by the row, D/6 by the column, with frequency 10000^(-2i/d) on an axis of width d (Wan 2.1, whose base is
RoPE, arXiv 2104.09864).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE = 10000.0


def _axis_angles(positions: Tensor, pairs: int) -> Tensor:
    """Angles [n, pairs] in float64: float32 is off by 7e-4 at latent frame 30,000."""
    frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.outer(positions.to(torch.float64), frequencies)


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs of a head turned by frame, row and column: 22, 21, 21 at width 128."""
    side = head_dim // 6
    return head_dim // 2 - 2 * side, side, side


@lru_cache(maxsize=16)
def rotation(frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Unit complex numbers [N, 1, D/2] (complex64) that turn the tokens of latent frames at positions `frames`, each of
    `height` x `width` tokens, row-major."""
    of_frame, of_row, of_column = axis_pairs(head_dim)
    shape = (len(frames), height, width)
    # Plain tensors even when first asked for under inference mode: a cached table may be used in training later.
    with torch.inference_mode(False):
        angles = torch.cat(
            [
                _axis_angles(torch.tensor(frames), of_frame)[:, None, None].expand(*shape, of_frame),
                _axis_angles(torch.arange(height), of_row)[None, :, None].expand(*shape, of_row),
                _axis_angles(torch.arange(width), of_column)[None, None, :].expand(*shape, of_column),
            ],
            dim=-1,
        ).reshape(-1, 1, head_dim // 2)
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(device)


def rotate(x_BNHD: Tensor, turn_N1P: Tensor) -> Tensor:
    """Turns each adjacent pair of x [B, N, H, D] by its token's angle, in float32; same dtype out.

    One complex product: on a CPU forward and backward take a twentieth of what sines and cosines on strided halves do.
    """
    pairs = torch.view_as_complex(x_BNHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn_N1P).flatten(-2).to(x_BNHD.dtype)
