"""The models a video needs, loaded from files."""

from __future__ import annotations

import warnings
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

_UMT5_BYTES = 12_500_000_000  # umT5-XXL's encoder in bfloat16, 11.4e9, and what it computes with


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
    """umT5; with a cache folder it is loaded only for prompts not seen before.

    On a graphics card with too little memory free for it, it is loaded on the CPU.
    """

    def load() -> UMT5Encoder:
        return UMT5Encoder.load(path, device=_roomy(device))

    return load() if cache is None else CachedEncoder(EmbeddingCache(cache), encoder_identity(path), load)


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Embeddings [1,L,D] of each prompt, encoded once; one prompt, one tensor."""
    return {prompt: encoder.encode([prompt]) for prompt in dict.fromkeys(prompts)}


def _roomy(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    if free >= _UMT5_BYTES:
        return device
    warnings.warn(
        f"the text encoder needs {_UMT5_BYTES / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free: it encodes on "
        "the CPU; --embedding-cache FOLDER keeps what it made",
        stacklevel=2,
    )
    return torch.device("cpu")
