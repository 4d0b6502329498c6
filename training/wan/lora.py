"""Low-rank training: peft's layers put into a model, taken out as a file that ComfyUI loads, or merged.

peft is imported where it is used: it is part of the extra `train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.state_dict import strip_wrappers

from ..io import save_tensors
from ..recipes.wan import LoraRecipe

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def require_peft() -> None:
    """ValueError where it is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "lora.rank needs the library peft: pip install peft, or this project with its extra `train`"
        ) from error


def add_lora(model: WanDiT, recipe: LoraRecipe, *, seed: int) -> WanDiT:
    """Puts trainable float32 additions, at first zero, into the model's blocks; all else is frozen. In place.

    Raises:
        ValueError: peft is missing.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    pattern = rf"blocks\.\d+\.({'|'.join(name.replace('.', chr(92) + '.') for name in recipe.targets)})"
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.scaled_by, target_modules=pattern, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = ".lora_" in name
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return model


def merged(weights: Mapping[str, Tensor], recipe: LoraRecipe) -> dict[str, Tensor]:
    """Weights by original keys, from those of a model that `add_lora` changed; float32."""
    plain = {strip_wrappers(name): tensor for name, tensor in weights.items()}
    result = {}
    for name, tensor in plain.items():
        if ".lora_" in name:
            continue
        key = name.replace(_BASE, ".")
        result[key] = tensor.float()
        module = key.removesuffix(".weight")
        if module + _A in plain:
            down, up = plain[module + _A].float(), plain[module + _B].float()
            result[key] = torch.addmm(result[key], up, down, alpha=recipe.scaled_by / recipe.rank)
    return result


def lora_tensors(weights: Mapping[str, Tensor], recipe: LoraRecipe) -> dict[str, Tensor]:
    """The additions alone, in the keys that ComfyUI's LoRA loaders take; with an alpha where it is not the rank."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = strip_wrappers(name)
        if ".lora_" not in name:
            continue
        module, _, part = name.partition(".lora_")
        found[f"diffusion_model.{module}.lora_{part.replace('.default', '')}"] = tensor.float()
        if part.startswith("A") and recipe.scaled_by != recipe.rank:
            found[f"diffusion_model.{module}.alpha"] = torch.tensor(recipe.scaled_by)
    return found


def lora_path(result: Path) -> Path:
    """Where the LoRA of a result lies: beside it."""
    return result.with_suffix(".lora.safetensors")


def save_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, dtype: torch.dtype) -> None:
    """Writes a LoRA file; alphas stay float32."""
    cast = {name: t if name.endswith(".alpha") else t.to("cpu", dtype).contiguous() for name, t in tensors.items()}
    save_tensors(path, cast, metadata)
