"""Finds the digits of a video: how much of each pixel each covers, where they are and in which colour.

With one digit in the prompt its colour does not matter: it is all that differs from the ground. Two digits are told
apart by the colours that the prompt gives them: every pixel is split into the ground's colour and theirs.

Shapes: B videos, M digits of all videos together (clip by clip, as the prompts name them), T pixel frames; pixels
[B,3,T,H,W] in -1..1, clamped here; covers [M,T,H,W] in 0..1; centres [M,T,2] as (x, y) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.prompts import COLOURS, Mover, Scene
from .foreground import centroids, foreground

# Below a fifth of the contrast is noise of the ground and ringing around the strokes; as in `foreground`.
_NOISE, _FULL = 0.2, 0.9
_CORE = 0.95


@dataclass(frozen=True)
class Tracks:
    """What is seen of every digit in every pixel frame."""

    movers: tuple[Mover, ...]
    """what the prompts say of them, length M"""
    video: torch.Tensor
    """[M], the number of its video"""
    cover: torch.Tensor
    """[M,T,H,W]"""
    centre: torch.Tensor
    """[M,T,2]"""
    colour: torch.Tensor
    """[M,T,3], RGB in 0..1, of the pixels that the digit covers fully; of a digit that is not there, the ground's"""
    ground: torch.Tensor
    """[B,T,3], RGB in 0..1"""

    def per_video(self, values_M: torch.Tensor) -> torch.Tensor:
        """Mean over the digits of each video, NaN left out: [M,...] -> [B,...], NaN where a video has none."""
        known = ~values_M.isnan()
        shape = (self.ground.shape[0], *values_M.shape[1:])
        total = torch.zeros(shape, dtype=values_M.dtype).index_add_(0, self.video, values_M.nan_to_num())
        return total / torch.zeros(shape, dtype=values_M.dtype).index_add_(0, self.video, known.to(values_M.dtype))


def track(pixels: torch.Tensor, scenes: Sequence[Scene]) -> Tracks:
    """Separates digits and ground in every pixel frame.

    Raises ValueError when the number of scenes is not that of the videos."""
    if len(scenes) != pixels.shape[0]:
        raise ValueError(f"{pixels.shape[0]} videos but {len(scenes)} scenes; give the scene of each video")
    covers, colours, grounds, videos = [], [], [], []
    for b, scene in enumerate(scenes):
        frames_TCHW = pixels[b].clamp(-1, 1).float().transpose(0, 1)
        cover, ground_TC = foreground(frames_TCHW)
        parts = [cover] if len(scene.movers) == 1 else split_by_colour(frames_TCHW, ground_TC, scene.movers)
        for cover_THW in parts:
            core = (cover_THW > _CORE).float()
            size_T1 = core.sum((1, 2))[:, None]
            mean_TC = torch.einsum("tchw,thw->tc", frames_TCHW, core) / size_T1.clamp_min(1)
            covers.append(cover_THW)
            colours.append(torch.where(size_T1 > 0, mean_TC, ground_TC))
            videos.append(b)
        grounds.append(ground_TC)
    cover_MTHW = torch.stack(covers)
    return Tracks(
        movers=tuple(mover for scene in scenes for mover in scene.movers),
        video=torch.tensor(videos),
        cover=cover_MTHW,
        centre=centroids(cover_MTHW.flatten(0, 1)).unflatten(0, cover_MTHW.shape[:2]),
        colour=(torch.stack(colours) + 1) / 2,
        ground=(torch.stack(grounds) + 1) / 2,
    )


def split_by_colour(
    frames_TCHW: torch.Tensor, ground_TC: torch.Tensor, movers: Sequence[Mover]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Covers [T,H,W] of two digits: least squares of pixel = ground + a (colour - ground) + b (other - ground).

    Exact for pixels that mix the ground and the two colours; any other colour counts for what it is most like."""
    rgb = torch.tensor([COLOURS[mover.colour] for mover in movers], dtype=torch.float32) / 127.5 - 1
    basis_TKC = rgb - ground_TC[:, None]
    away = frames_TCHW.flatten(2) - ground_TC[:, :, None]
    shares_TKP = torch.linalg.solve(basis_TKC @ basis_TKC.mT, basis_TKC @ away)
    # A pixel that only one of them explains well belongs to that one alone: least squares would give the other, of a
    # colour that is a little off, a ghost.
    alone_TKP = (basis_TKC @ away) / basis_TKC.square().sum(-1, keepdim=True)
    left = [(away - alone_TKP[:, k, None] * basis_TKC[:, k, :, None]).square().sum(1) for k in (0, 1)]
    both = (away - basis_TKC.mT @ shares_TKP).square().sum(1)
    shares = shares_TKP.clone()
    for k in (0, 1):
        only = (left[k] <= left[1 - k]) & (left[k] < both + 0.04 * away.square().sum(1))
        shares[:, k] = torch.where(only, alone_TKP[:, k], shares[:, k])
        shares[:, 1 - k] = torch.where(only, 0.0, shares[:, 1 - k])
    covers = ((shares - _NOISE) / (_FULL - _NOISE)).clamp(0, 1).unflatten(-1, frames_TCHW.shape[-2:])
    return covers[:, 0], covers[:, 1]
