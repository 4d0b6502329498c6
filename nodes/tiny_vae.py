"""A tiny autoencoder (TAEHV's layout) that behaves as ComfyUI's VAE, so that its nodes take it too.

Legend: B batch, F latent frames, T pixel frames, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diag_core.vae import TinyVAE, VideoVAE, vae_from_state_dict
from ..diag_core.weights import open_weights
from . import comfy_bridge

_TIME_STRIDE = 4


def load_tiny_vae(path: Path) -> TinyVAE:
    """A TAEHV file for Wan 2.1 (taew2_1), or one of ours, in float32.

    Raises:
        ValueError: another kind of file; names it.
    """
    weights = open_weights(path)
    tensors = {name: weights.read(name) for name in weights.specs}
    try:
        vae = vae_from_state_dict(tensors, metadata=weights.metadata, encoder_lookahead=True)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(vae, TinyVAE):
        raise ValueError(f"{path.name} is the full Wan VAE, not a tiny one; load it with Load VAE")
    return vae.float().requires_grad_(False).eval()


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
        try:
            pixels = self.on_device().decode(latents.to(self.device, self.vae_dtype))
        finally:
            self.offload()
        return to_images(pixels).to(self.output_device)

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """As `decode`: it is small enough to need no tiles."""
        return self.decode(samples)

    @torch.no_grad()
    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pixels [T,H,W,3] (one video) or [B,T,H,W,3] in 0..1 -> [B,16,F,h,w]; T and sizes are cropped to what fits."""
        pixels = pixel_samples.unsqueeze(0) if pixel_samples.ndim == 4 else pixel_samples
        stride = self.first_stage_model.spatial_stride
        frames, height, width = pixels.shape[1], pixels.shape[2] // stride * stride, pixels.shape[3] // stride * stride
        pixels = pixels[:, : frames - (frames - 1) % _TIME_STRIDE, :height, :width, :3]
        pixels = pixels.movedim(-1, 1).to(self.device, self.vae_dtype) * 2 - 1
        try:
            latents = self.on_device().encode(pixels)
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
        return self.first_stage_model.state_dict()


def to_images(pixels: Tensor) -> Tensor:
    """Pixels [B,3,T,H,W] in -1..1 -> [B,T,H,W,3] in 0..1, float32."""
    return pixels.movedim(1, -1).float().add(1).div(2).clamp(0, 1)
