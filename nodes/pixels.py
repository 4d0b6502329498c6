"""Between ComfyUI's pictures and the pixels of our autoencoders.

Legend: B batch, C latent channels, F latent frames, T pixel frames, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..diag_core.geometry import TIME_STRIDE
from ..diag_core.vae import VideoVAE


def to_images(pixels: Tensor) -> Tensor:
    """Pixels [B,3,T,H,W] in -1..1 -> [B,T,H,W,3] in 0..1, float32."""
    return pixels.movedim(1, -1).float().add(1).div(2).clamp(0, 1)


def to_pixels(images: Tensor, stride: int) -> Tensor:
    """Pictures [T,H,W,3] (one video) or [B,T,H,W,3] in 0..1 -> pixels [B,3,T,H,W] in -1..1.

    What does not fit is cut off as ComfyUI's own VAE does it: pictures at the end beyond 4n + 1, and the rims where
    height or width is no multiple of `stride`.
    """
    images = images.unsqueeze(0) if images.ndim == 4 else images
    frames, (height, width) = images.shape[1], images.shape[2:4]
    top, left = height % stride // 2, width % stride // 2
    rows, columns = slice(top, top + height // stride * stride), slice(left, left + width // stride * stride)
    images = images[:, : frames - (frames - 1) % TIME_STRIDE, rows, columns, :3]
    return images.movedim(-1, 1) * 2 - 1


def decode_in_pieces(
    network: VideoVAE,
    latents: Tensor,
    piece_frames: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    output_device: torch.device,
    before_piece: Callable[[], None] = lambda: None,
) -> Tensor:
    """Normalised latents [B,C,F,h,w] -> pictures [B,T,H,W,3] in 0..1, equal to those of a whole decode.

    On `device` there are never more than `piece_frames` latent frames, and what the stream remembers.

    Args:
        network: on `device`, in `dtype`.
        before_piece: called before each piece; an error it raises ends the decode.
    """
    stream, pieces = network.streaming_decoder(), []
    for piece in latents.split(piece_frames, dim=2):
        before_piece()
        pieces.append(to_images(stream.push(piece.to(device, dtype))).to(output_device))
    return _joined(pieces)


def _joined(pieces: list[Tensor]) -> Tensor:
    """Along T. Empties the list on the way: a long video takes gigabytes, and should not take them twice."""
    if len(pieces) == 1:
        return pieces.pop()
    batch, _, *rest = pieces[0].shape
    whole = pieces[0].new_empty(batch, sum(piece.shape[1] for piece in pieces), *rest)
    start = 0
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        whole[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return whole
