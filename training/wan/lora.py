"""Low-rank training: peft's layers put into a model, taken out as a file that ComfyUI loads, or merged.

peft is imported where it is used: it is part of the extra `train`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def add_lora(model: WanDiT, recipe: LoraRecipe) -> WanDiT:
    """Puts trainable float32 additions into the model's blocks, for `initial_lora` to fill; all else is frozen. In
    place.

    Raises:
        ValueError: peft is missing.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    pattern = rf"blocks\.\d+\.({'|'.join(name.replace('.', chr(92) + '.') for name in recipe.targets)})"
    alpha: Any = recipe.scaled_by  # peft says int, and divides it
    config = LoraConfig(r=recipe.rank, lora_alpha=alpha, target_modules=pattern, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        trained = ".lora_" in name
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()
    return model


def initial_lora(name: str, shape: torch.Size, seed: int) -> Tensor:
    """What an addition begins as, by its name: A as peft begins it, B zero, so that at first nothing is added.

    From name and seed alone, so that any number of processes begins with the same.
    """
    if not name.endswith(_A):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def fill_lora(model: WanDiT, seed: int) -> None:
    """`initial_lora` for every addition of a model that is held whole."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.copy_(initial_lora(strip_wrappers(name), parameter.shape, seed))


def base_name(name: str) -> str:
    """The original key of a weight that something is added to; any other name as it is."""
    return name.replace(_BASE, ".")


def merged(weights: Mapping[str, Tensor], recipe: LoraRecipe) -> dict[str, Tensor]:
    """Weights by original keys, from those of a model that `add_lora` changed; float32."""
    plain = {strip_wrappers(name): tensor for name, tensor in weights.items()}
    result = {}
    for name, tensor in plain.items():
        if ".lora_" in name:
            continue
        key = base_name(name)
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
