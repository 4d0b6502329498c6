"""Small pictures of a video while it is sampled.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..diag_core.demo_text import DEMO_ENCODER
from ..diag_core.pictures import to_uint8
from ..diag_core.vae import TinyVAE
from . import comfy_bridge
from .demo_files import vae_path
from .tiny_vae import decode_bytes, load_tiny_vae

log = logging.getLogger(__name__)

MAX_SIDE = 512  # pixels, as ComfyUI's own previews


class Previewer:
    """The newest picture of a chunk: by a tiny autoencoder where one is at hand, else by ComfyUI's colour estimate."""

    def __init__(self, text_encoder: str, device: torch.device) -> None:
        path = vae_path() if text_encoder == DEMO_ENCODER else _published_tiny_vae()
        self.dtype = comfy_bridge.vae_dtype(device)
        self.vae = None if path is None else _load(path, path.stat().st_mtime_ns, device, self.dtype)

    def memory(self, rows: int, columns: int) -> float:
        """Bytes that a picture takes while it is made, of latents of so many rows and columns."""
        return 0.0 if self.vae is None else decode_bytes(self.vae, (1, 16, 1, rows, columns), self.dtype)

    @torch.no_grad()
    def picture(self, latents: Tensor) -> tuple[str, Any, int]:
        """Normalised latents [B,C,f,H,W] -> the first sample's last picture, for `ProgressBar.update_absolute`."""
        from PIL import Image

        pixels = self._pixels(latents[:1, :, -1:])
        return "JPEG", Image.fromarray(to_uint8(pixels)[0].cpu().numpy()), MAX_SIDE

    def _pixels(self, newest: Tensor) -> Tensor:
        # The first latent frame of a video is a single picture: decoded by itself, the newest one is treated as such.
        if self.vae is not None:
            try:
                return self.vae.decode(newest.to(self.dtype))
            except comfy.model_management.OOM_EXCEPTION:
                log.warning("previews fall back to a colour estimate, the tiny VAE found no memory")
                self.vae = None
        return _estimate(newest)


def _published_tiny_vae() -> Path | None:
    names = [n for n in folder_paths.get_filename_list("vae_approx") if Path(n).name.startswith("taew2_1")]
    found = folder_paths.get_full_path("vae_approx", names[0]) if names else None
    return None if found is None else Path(found)


@lru_cache(maxsize=1)
def _load(path: Path, changed: int, device: torch.device, dtype: torch.dtype) -> TinyVAE | None:
    try:
        return load_tiny_vae(path).to(device, dtype)
    except (OSError, ValueError) as error:
        log.warning("previews fall back to a colour estimate, the tiny VAE cannot be used: %s", error)
        return None


def _estimate(latents: Tensor) -> Tensor:
    """ComfyUI's linear estimate of Wan's colours: [1,C,1,H,W] -> pixels [1,3,1,H,W] in -1..1."""
    space = comfy.latent_formats.Wan21()
    factors = torch.tensor(space.latent_rgb_factors, dtype=latents.dtype, device=latents.device)
    bias = torch.tensor(space.latent_rgb_factors_bias, dtype=latents.dtype, device=latents.device)
    return torch.einsum("bcfhw,cr->brfhw", latents, factors) + bias[:, None, None, None]
