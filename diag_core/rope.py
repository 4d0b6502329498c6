"""Rotary position embedding over latent frame, row and column.

Legend: N tokens, H heads, D head width. Adjacent pairs of a head are rotated; D/2 - 2(D/6) pairs by the latent frame,
D/6 by the row, D/6 by the column, with frequency 10000^(-2i/d) on an axis of width d (Wan 2.1, whose base is
RoPE, arXiv 2104.09864).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .transfer import to_device

BASE = 10000.0


def _axis_angles(positions: Tensor, pairs: int) -> Tensor:
    """Angles [n, pairs] in float64: float32 is off by 7e-4 at latent frame 30,000."""
    frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.outer(positions.to(torch.float64), frequencies)


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs of a head turned by frame, row and column: 22, 21, 21 at width 128."""
    side = head_dim // 6
    return head_dim // 2 - 2 * side, side, side


def _unit(angles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


# Cached tensors are plain ones even when first asked for under inference mode: they may be used in training later.
@lru_cache(maxsize=8)
def _of_frames(frames: tuple[int, ...], pairs: int, device: torch.device) -> Tensor:
    """[F, pairs]. A chunk's steps share it; a new chunk sends a few hundred numbers, without waiting for them."""
    with torch.inference_mode(False):
        return to_device(_unit(_axis_angles(torch.tensor(frames), pairs)), device)


@lru_cache(maxsize=4)
def _of_places(height: int, width: int, pairs: int, device: torch.device) -> Tensor:
    """[height, width, 2 pairs]: the same for every latent frame of a video."""
    with torch.inference_mode(False):
        rows = _axis_angles(torch.arange(height), pairs)[:, None].expand(height, width, pairs)
        columns = _axis_angles(torch.arange(width), pairs)[None, :].expand(height, width, pairs)
        return _unit(torch.cat((rows, columns), dim=-1)).to(device)


def rotation(frames: tuple[int, ...], height: int, width: int, head_dim: int, device: torch.device) -> Tensor:
    """Unit complex numbers [N, 1, D/2] (complex64) that turn the tokens of latent frames at positions `frames`, each of
    `height` x `width` tokens, row-major."""
    of_frame, of_side, _ = axis_pairs(head_dim)
    shape = (len(frames), height, width)
    frame_part = _of_frames(frames, of_frame, device)[:, None, None].expand(*shape, of_frame)
    place_part = _of_places(height, width, of_side, device).expand(*shape, 2 * of_side)
    return torch.cat((frame_part, place_part), dim=-1).view(-1, 1, head_dim // 2)


def rotate(x_BNHD: Tensor, turn_N1P: Tensor) -> Tensor:
    """Turns each adjacent pair of x [B, N, H, D] by its token's angle, in float32; same dtype out.

    One complex product: on a CPU forward and backward take a twentieth of what sines and cosines on strided halves do.
    """
    pairs = torch.view_as_complex(x_BNHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn_N1P).flatten(-2).to(x_BNHD.dtype)
