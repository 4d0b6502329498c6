"""What every video autoencoder here offers, so that callers never ask which one they hold, and the checks they share.

Shapes: B batch, C latent channels, T pixel frames, F latent frames (T = s (F - 1) + 1 with s pixel frames to a latent
frame, 4 for Wan), H W pixels, h w latent sizes. Pixels are nominally -1..1; latents are normalised (about N(0, 1)).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from .streaming import Stream


@runtime_checkable
class VideoVAE(Protocol):
    """Pixels to normalised latents and back; the first latent frame is one pixel frame, each later one is s of them."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def spatial_stride(self) -> int:
        """Pixels to a latent, along height and width."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,T,H,W] in -1..1 -> normalised latents [B,C,F,h,w], in the dtype of the pixels."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,F,h,w] -> pixels [B,3,T,H,W], nominally -1..1, not clamped, in the latents' dtype."""
        ...

    def streaming_decoder(self) -> Stream: ...

    def streaming_encoder(self) -> Stream: ...


def check_latents(latents: Tensor, channels: int) -> None:
    """Refuse (ValueError) anything but [B, channels, F >= 1, h, w]."""
    shape = tuple(latents.shape)
    if latents.ndim != 5:
        raise ValueError(f"latents must be [B, {channels}, F, h, w], got {latents.ndim} dimensions: {shape}")
    if shape[1] != channels:
        raise ValueError(f"latents must be [B, {channels}, F, h, w] with {channels} channels, got {shape}")
    if 0 in shape:
        raise ValueError(f"latents are empty: {shape}")


def check_pixels(pixels: Tensor, *, spatial_stride: int, time_stride: int, first: bool) -> None:
    """Refuse (ValueError) anything but [B, 3, T, H, W] that splits into whole latents.

    first: the video starts here, so T - 1 must be a multiple of time_stride; otherwise T must be.
    """
    shape = tuple(pixels.shape)
    if pixels.ndim != 5:
        raise ValueError(f"pixels must be [B, 3, T, H, W], got {pixels.ndim} dimensions: {shape}")
    if shape[1] != 3:
        raise ValueError(f"pixels must be [B, 3, T, H, W] with 3 channels, got {shape}")
    if 0 in shape:
        raise ValueError(f"pixels are empty: {shape}")
    frames, height, width = shape[2:]
    if height % spatial_stride or width % spatial_stride:
        raise ValueError(
            f"height and width must be multiples of {spatial_stride}, got {height} x {width}; crop or resize first"
        )
    if first and (frames - 1) % time_stride:
        raise ValueError(
            f"a video must have {time_stride}n + 1 pixel frames (1, {time_stride + 1}, {2 * time_stride + 1}, ...), "
            f"got {frames}"
        )
    if not first and frames % time_stride:
        raise ValueError(f"after its first frames a video goes on in multiples of {time_stride} frames, got {frames}")
