"""Video autoencoders behind one interface: Wan 2.1's own and a tiny one in the TAEHV layout."""

from __future__ import annotations

from .detect import vae_from_state_dict
from .diffusers_keys import vae_from_diffusers, vae_to_diffusers
from .interface import VideoVAE
from .streaming import Stream
from .tiny import TinyVAE, TinyVAEConfig
from .wan import WanVAE

__all__ = [
    "Stream",
    "TinyVAE",
    "TinyVAEConfig",
    "VideoVAE",
    "WanVAE",
    "vae_from_diffusers",
    "vae_from_state_dict",
    "vae_to_diffusers",
]
