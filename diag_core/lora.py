"""LoRA files merged into a Wan DiT: every usual naming, computed in float32, tensor by tensor.

A LoRA adds scale * up @ down to a weight, with scale = alpha / rank, or 1 where the file gives no alpha (LongLive
trains with alpha equal to rank and stores none). Legend: O outputs, I inputs (all axes after the first), R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .state_dict import WRAPPERS, CheckpointError, Shaped, strip_wrappers, to_diffusers_name
from .weights import open_weights

_LORA_WRAPPERS = ("generator_lora", *WRAPPERS)  # LongLive keeps the critic's LoRA beside the generator's
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "unet.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")  # names with "_" for every "." (kohya and others)
_PART = re.compile(r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(?:\.default)?(?:\.weight)?", re.DOTALL)
_OTHER = re.compile(r"(?P<module>.+)\.(?P<part>alpha|diff|diff_b)", re.DOTALL)
_PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}
_LISTED = 10

ScaleOfRank = Callable[[int], float]


@dataclass(frozen=True)
class Change:
    """What is added to one tensor: scale * up [O,R] @ down [R,I], and `diff` of the tensor's own shape."""

    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    diff: Tensor | None = None

    def added_to(self, tensor: Tensor, strength: float = 1.0) -> Tensor:
        """A new float32 tensor on the device of the old."""
        result = tensor.detach().to(torch.float32, copy=True).contiguous()
        if self.down is not None and self.up is not None:
            up, down = (part.to(result.device, torch.float32).flatten(1) for part in (self.up, self.down))
            result.view(result.shape[0], -1).addmm_(up, down, alpha=self.scale * strength)
        if self.diff is not None:
            result.add_(self.diff.to(result.device, torch.float32).view_as(result), alpha=strength)
        return result


@dataclass(frozen=True)
class Lora:
    """The tensors of a LoRA file by stored name, and what its own config says of the scale."""

    tensors: Mapping[str, Tensor]
    scale: ScaleOfRank | None = None

    def changes(self, targets: Mapping[str, Shaped]) -> dict[str, Change]:
        """Original key -> change, for the model these keys belong to.

        Raises:
            CheckpointError: a key that fits nothing in the model, half a pair, or a shape that does not fit.
        """
        modules = _aliases(targets)
        parts: dict[str, dict[str, Tensor]] = {}
        unused = []
        for name, tensor in self.tensors.items():
            found = _part_of(name, modules)
            if found is None:
                unused.append(name)
                continue
            key, part = found
            if part == "diff_b":
                key, part = f"{key.removesuffix('.weight')}.bias", "diff"
            if key not in targets:
                unused.append(name)
            elif part in parts.setdefault(key, {}):
                raise CheckpointError(f"two of its tensors are the {part} part of {key!r}: {name!r} is one of them")
            else:
                parts[key][part] = tensor
        if unused:
            raise CheckpointError(_unused_message(unused, len(self.tensors)))
        return {key: self._change(key, own, targets[key]) for key, own in parts.items()}

    def _change(self, key: str, own: dict[str, Tensor], target: Shaped) -> Change:
        shape = tuple(target.shape)
        down, up, alpha, diff = (own.get(part) for part in ("down", "up", "alpha", "diff"))
        if diff is not None and diff.numel() != math.prod(shape):
            raise CheckpointError(f"its change of {key!r} has shape {list(diff.shape)}, the model's is {list(shape)}")
        if down is None and up is None:
            if alpha is not None:
                raise CheckpointError(f"it has an alpha for {key!r} and no pair to scale. Fetch it again")
            return Change(diff=diff)
        if down is None or up is None:
            raise CheckpointError(f"it has half a pair for {key!r}: {'up' if down is None else 'down'} alone")
        fits = (
            down.dim() >= 2 <= up.dim()
            and down.numel() > 0
            and len(shape) >= 2
            and up.shape[0] == shape[0]
            and up[0].numel() == down.shape[0]
            and down[0].numel() == math.prod(shape[1:])
        )
        if not fits:
            raise CheckpointError(
                f"its pair for {key!r}, {list(up.shape)} by {list(down.shape)}, does not make {list(shape)}: it "
                "belongs to a model of another size"
            )
        rank = down.shape[0]
        scale = self.scale(rank) if self.scale else 1.0
        if alpha is not None:
            if alpha.numel() != 1:
                raise CheckpointError(f"its alpha for {key!r} is no single number")
            scale = float(alpha) / rank
        return Change(down, up, scale, diff)


def open_lora(path: str | Path) -> Lora:
    """Read a LoRA: .safetensors, .pt (LongLive's `generator_lora` included), or a peft folder.

    Raises:
        CheckpointError: names the file, what is wrong and what to do.
    """
    path = Path(path)
    weights = open_weights(path, wrappers=_LORA_WRAPPERS)
    folder = path if path.is_dir() else path.parent
    settings: dict[str, Any] = {}
    try:
        if (folder / "adapter_config.json").is_file() and (path.is_dir() or path.stem == "adapter_model"):
            settings = json.loads((folder / "adapter_config.json").read_bytes())
        elif "lora_adapter_metadata" in weights.metadata:  # as diffusers saves it, under the name of the model's part
            packed = json.loads(weights.metadata["lora_adapter_metadata"])
            settings = {name.removeprefix("transformer."): value for name, value in packed.items()}
        scale = _scale_of(settings)
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: the config of this LoRA cannot be used ({error})") from error
    return Lora({name: weights.read(name) for name in weights.specs}, scale)


def check_strength(strength: float) -> None:
    """Raises ValueError unless it is a finite number; below 0 a LoRA is taken away."""
    if not math.isfinite(strength):
        raise ValueError(f"LoRA strength must be a finite number, got {strength}")


def _scale_of(settings: Mapping[str, Any]) -> ScaleOfRank | None:
    """From peft's config: alpha / rank, or alpha / sqrt(rank) with rank stabilisation."""
    alpha = settings.get("lora_alpha")
    if alpha is None:
        return None
    if settings.get("alpha_pattern"):
        raise ValueError("a different alpha for each layer is not supported: merge it with peft first")
    alpha = float(alpha)
    return (lambda rank: alpha / math.sqrt(rank)) if settings.get("use_rslora") else (lambda rank: alpha / rank)


def _aliases(targets: Mapping[str, Shaped]) -> dict[str, str]:
    """Every name a LoRA may use for a module -> original key of its weight (or of a bare parameter)."""
    aliases = {}
    for key in targets:
        if key.endswith(".bias"):
            continue
        for name in (key, to_diffusers_name(key)):
            module = name.removesuffix(".weight")
            aliases[module] = key
            aliases[module.replace(".", "_")] = key
    return aliases


def _part_of(name: str, modules: Mapping[str, str]) -> tuple[str, str] | None:
    """Stored name -> (original key, "down" | "up" | "alpha" | "diff" | "diff_b"), None when it fits nothing."""
    match = _PART.fullmatch(strip_wrappers(name)) or _OTHER.fullmatch(strip_wrappers(name))
    if match is None:
        return None
    module, part = match["module"], _PARTS.get(match["part"], match["part"])
    while module not in modules:
        prefix = next((p for p in (*_PREFIXES, *_FLAT_PREFIXES) if module.startswith(p)), None)
        if prefix is None:
            return None
        module = module[len(prefix) :]
    return modules[module], part


def _unused_message(unused: list[str], count: int) -> str:
    rest = "" if len(unused) <= _LISTED else f", and {len(unused) - _LISTED} more"
    return (
        f"{len(unused)} of its {count} keys fit nothing in this model: {', '.join(unused[:_LISTED])}{rest}. It belongs "
        "to another model (image-to-video, a text encoder), or is of a kind that cannot be merged (DoRA, LoKr)"
    )
