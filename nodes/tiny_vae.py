"""A tiny autoencoder (TAEHV's layout) that behaves as ComfyUI's VAE, so that its nodes take it too.

Legend: B batch, F latent frames, T pixel frames, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diag_core.fast import lay_channels_last
from ..diag_core.vae import TinyVAE, VideoVAE, vae_from_state_dict
from ..diag_core.weights import open_weights
from . import comfy_bridge
from .pixels import decode_in_pieces, to_pixels

_TIME_STRIDE = 4
_PIECE_FRAMES = 3  # latent frames decoded at once
_LIVE_COPIES = 4  # of a layer's output, while the next one is computed


def load_tiny_vae(path: Path) -> TinyVAE:
    """A TAEHV file for Wan 2.1 (taew2_1), or one of ours, in float32.

    Raises:
        ValueError: another kind of file; names it.
    """
    weights = open_weights(path)
    tensors = {name: weights.read(name) for name in weights.specs}
    try:
        vae = vae_from_state_dict(tensors, metadata=weights.metadata)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(vae, TinyVAE):
        raise ValueError(f"{path.name} is the full Wan VAE, not a tiny one; load it with Load VAE")
    lay_channels_last(vae.decoder)
    return vae.float().requires_grad_(False).eval()


def decode_bytes(vae: TinyVAE, shape: Sequence[int], dtype: torch.dtype) -> float:
    """Bytes to decode latents [B,16,F,h,w] at once, estimated from the layers that see whole pixels."""
    widest = max(vae.config.encoder_width, vae.config.decoder_widths[3]) / vae.config.patch_size**2
    batch, _, frames, rows, columns = shape
    pixels = batch * _TIME_STRIDE * frames * rows * columns * vae.spatial_stride**2
    return _LIVE_COPIES * widest * pixels * dtype.itemsize


class TinyVideoVAE:
    """What ComfyUI's nodes ask of a VAE; LATENT in and out are in Wan's raw space, as with the full VAE."""

    latent_channels = 16
    latent_dim = 3
    output_channels = 3
    not_video = False

    def __init__(self, vae: TinyVAE) -> None:
        self.first_stage_model = vae
        self.device = comfy_bridge.vae_device()
        self.vae_dtype = comfy_bridge.vae_dtype(self.device)
        self.output_device = comfy_bridge.intermediate_device()

    def memory_used_decode(self, shape: Sequence[int], dtype: torch.dtype) -> float:
        """Bytes to decode latents [B,16,F,h,w] at once, as ComfyUI's VAEs tell."""
        return decode_bytes(self.first_stage_model, shape, dtype)

    def make_room(self, batch: int, latent_frames: int, rows: int, columns: int) -> None:
        needed = self.memory_used_decode((batch, 16, latent_frames, rows, columns), self.vae_dtype)
        comfy_bridge.free_memory(needed, self.device)

    def on_device(self) -> VideoVAE:
        """The network where it computes; `offload` takes it away again."""
        vae: VideoVAE = self.first_stage_model.to(self.device, self.vae_dtype)
        return vae

    def offload(self) -> None:
        self.first_stage_model.to(comfy_bridge.offload_device())

    @torch.no_grad()
    def decode(self, samples: Tensor, vae_options: Any = None) -> Tensor:
        """[B,16,F,h,w] -> pixels [B,T,H,W,3] in 0..1, on the CPU."""
        latents = comfy_bridge.normalise(comfy_bridge.check_latent({"samples": samples}))
        return self.decode_normalised(latents, _PIECE_FRAMES)

    def decode_normalised(
        self, latents: Tensor, piece_frames: int, before_piece: Callable[[], None] = comfy_bridge.check_interrupted
    ) -> Tensor:
        """Normalised latents [B,16,F,h,w] -> pixels [B,T,H,W,3] in 0..1, `piece_frames` latent frames at a time."""
        batch, _, frames, rows, columns = latents.shape
        self.make_room(batch, min(piece_frames, frames), rows, columns)
        try:
            return decode_in_pieces(
                self.on_device(), latents, piece_frames, device=self.device, dtype=self.vae_dtype,
                output_device=self.output_device, before_piece=before_piece,
            )  # fmt: skip
        finally:
            self.offload()

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """As `decode`, which needs no tiles: it takes the video in pieces."""
        return self.decode(samples)

    @torch.no_grad()
    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pixels [T,H,W,3] (one video) or [B,T,H,W,3] in 0..1 -> [B,16,F,h,w]; T and sizes are cropped to what fits."""
        pixels = to_pixels(pixel_samples, self.first_stage_model.spatial_stride)
        batch, _, frames, height, width = pixels.shape
        stride = self.first_stage_model.spatial_stride
        self.make_room(batch, -(-frames // _TIME_STRIDE), height // stride, width // stride)
        try:
            latents = self.on_device().encode(pixels.to(self.device, self.vae_dtype))
        finally:
            self.offload()
        return comfy_bridge.denormalise(latents.float()).to(self.output_device)

    def encode_tiled(self, pixel_samples: Tensor, **_: Any) -> Tensor:
        return self.encode(pixel_samples)

    def spacial_compression_decode(self) -> int:
        return self.first_stage_model.spatial_stride

    def spacial_compression_encode(self) -> int:
        return self.first_stage_model.spatial_stride

    def temporal_compression_decode(self) -> int:
        return _TIME_STRIDE

    def temporal_compression_encode(self) -> int:
        return _TIME_STRIDE

    def throw_exception_if_invalid(self) -> None:
        """ComfyUI's nodes ask a VAE that could not be read; this one could."""

    def get_sd(self) -> dict[str, Tensor]:
        """What a file takes: contiguous, whatever the layout here."""
        return {name: tensor.contiguous() for name, tensor in self.first_stage_model.state_dict().items()}
