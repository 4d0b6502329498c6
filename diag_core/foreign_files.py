"""Guesses what a set of keys is when it is no plain Wan 2.1 text-to-video DiT: for error messages only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .config import WanConfig

_LORA_KEY = re.compile(r"(^|[._])lora[._]")

# The first that fits is named: from the most telling keys to the least.
_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"(^|\.)(scaled_fp8|comfy_quant)$|\.(scale_weight|weight_scale|scale_input|weight_scale_2)$",
        "an fp8 file with scales of its own, or another quantised one. Use the fp16 or bf16 file of the same model",
    ),
    (
        r"^vace_(blocks|patch_embedding)\.",
        "a VACE model, which is conditioned on video and masks. Use a text-to-video one",
    ),
    (
        r"^(img_emb\.|.*\.cross_attn\.(k_img|v_img|norm_k_img)\.|condition_embedder\.image_embedder\.|.*\.attn2\.add_k_proj\.)",
        "an image-to-video model. Use a text-to-video one",
    ),
    (
        r"^(control_adapter|ref_conv|audio_proj|casual_audio_encoder|face_adapter|motion_encoder)\.",
        "a Wan model with further conditions (camera, audio, reference or pose). Use a text-to-video one",
    ),
    (
        r"^(encoder|decoder)\.(conv1|conv_in|head|middle|mid_block|downsamples|down_blocks|up_blocks)\b|^(first_stage_model|vae)\.",
        "a VAE. Give it as the VAE, and a diffusion model here",
    ),
    (r"^(encoder|decoder)\.\d+\.", "a tiny autoencoder (TAEHV). Give it as the VAE, and a diffusion model here"),
    (
        r"^(shared\.|encoder\.block\.|token_embedding\.|blocks\.\d+\.(attn|pos_embedding)\.|text_encoders?\.|spiece_model$)",
        "a text encoder (umT5). Give it as the text encoder, and a diffusion model here",
    ),
    (r"^(visual|vision_model|text_model)\.", "a CLIP model. Give a Wan 2.1 diffusion model"),
    (
        r"^(double_blocks|single_blocks|joint_blocks|transformer_blocks|input_blocks|layers)\.",
        "the diffusion model of another family. Give a Wan 2.1 one",
    ),
)


def is_lora_key(name: str) -> bool:
    return bool(_LORA_KEY.search(name))


def likely_cause(tensors: Mapping[str, Any] | Iterable[str], config: WanConfig | None = None) -> str:
    """One sentence on what these keys probably are, "" when nothing is known.

    Args:
        tensors: by key, without prefixes.
        config: the model they should have fitted.
    """
    names = list(tensors)
    if any(is_lora_key(name) for name in names):
        return "This looks like a LoRA: load a base model and give this file as its LoRA."
    for pattern, kind in _KINDS:
        expression = re.compile(pattern)
        if any(expression.search(name) for name in names):
            return f"This looks like {kind}."
    modulation = tensors.get("head.modulation") if isinstance(tensors, Mapping) else None
    if config is not None and modulation is not None and modulation.shape[-1] != config.dim:
        return f"It is of another size: {_size_name(modulation.shape[-1])}, not {_size_name(config.dim)}."
    if names and config is not None and not any(name.startswith("blocks.") for name in names):
        return "It holds no transformer blocks: one shard of several, perhaps. Give the folder that holds them all."
    return ""


def _size_name(dim: int) -> str:
    published = {WanConfig.wan_1_3b().dim: "Wan 2.1 1.3B", WanConfig.wan_14b().dim: "Wan 2.1 14B"}
    return f"{published[dim]} (width {dim})" if dim in published else f"width {dim}"
