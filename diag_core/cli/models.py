"""The models a video needs, loaded from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..attention import attention_backend
from ..checkpoint import LoadedCheckpoint, load_dit
from ..state_dict import CheckpointError
from ..text import CachedEncoder, EmbeddingCache, TextEncoder, UMT5Encoder, encoder_identity
from ..vae import TinyVAE, WanVAE, vae_from_state_dict
from ..weights import open_weights


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "auto",
    lora: Path | None = None,
    lora_strength: float = 1.0,
) -> LoadedCheckpoint:
    """The DiT, ready to sample. Raises ValueError, as `load_dit` and `attention_backend` do."""
    attend = attention_backend(attention)
    loaded = load_dit(path, dtype=dtype, device=device, lora=lora, lora_strength=lora_strength)
    loaded.model.attend = attend
    return loaded


def load_vae(path: Path, *, dtype: torch.dtype, device: torch.device) -> WanVAE | TinyVAE:
    """A Wan VAE (original or diffusers keys) or TAEHV, told by its weights and, where it has any, its metadata.

    Raises:
        CheckpointError: (a ValueError) names the file and what is wrong with it.
    """
    weights = open_weights(path)
    try:
        vae = vae_from_state_dict({name: weights.read(name) for name in weights.specs}, metadata=weights.metadata)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return vae.to(device=device, dtype=dtype).requires_grad_(False).eval()


def umt5_encoder(path: Path, cache: Path | None, *, device: torch.device) -> TextEncoder:
    """umT5; with a cache folder it is loaded only for prompts not seen before."""
    if cache is None:
        return UMT5Encoder.load(path, device=device)
    return CachedEncoder(EmbeddingCache(cache), encoder_identity(path), lambda: UMT5Encoder.load(path, device=device))


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Embeddings [1,L,D] of each prompt, encoded once; one prompt, one tensor."""
    return {prompt: encoder.encode([prompt]) for prompt in dict.fromkeys(prompts)}
