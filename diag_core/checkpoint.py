"""Loading, saving and converting Wan DiT checkpoints.

A tensor at a time: it is read, merged with a LoRA in float32, cast once, and then belongs to the model or is written;
so neither loading nor converting holds a second copy. What a file says of its sampling travels in its safetensors
metadata under `diagdistill`: {"version", "settings", "model"}.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import HEAD_DIM, PATCH, WanConfig
from .lora import check_strength, open_lora
from .replacing import replacing
from .safetensors_file import FormatError, TensorSpec, write_safetensors
from .settings import PRESETS, WAN_NEGATIVE_PROMPT, CheckpointSettings, published_settings
from .state_dict import CheckpointError, check_keys, infer_config, original_names, to_diffusers_name
from .wan_dit import WanDiT
from .weights import Weights, open_weights, read_all

__all__ = [
    "PRESETS",
    "WAN_NEGATIVE_PROMPT",
    "CheckpointError",
    "CheckpointHeader",
    "CheckpointSettings",
    "LoadedCheckpoint",
    "LoadedTensors",
    "OpenCheckpoint",
    "convert",
    "load_dit",
    "load_tensors",
    "open_dit",
    "read_header",
    "read_settings",
    "save_dit",
]

METADATA_KEY = "diagdistill"
METADATA_VERSION = 1
FORMATS = ("comfyui", "diffusers")
_COMFYUI_TEXT_DIM = 4096
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model ready to sample (eval mode, no gradients), its sizes, and how its file wants it sampled.

    `settings` is None when the file says nothing and is no published one that is known for certain.
    """

    model: WanDiT
    config: WanConfig
    settings: CheckpointSettings | None


@dataclass(frozen=True)
class LoadedTensors:
    """The same before it is a model: weights by original keys, for whoever builds the model otherwise."""

    tensors: dict[str, Tensor]
    config: WanConfig
    settings: CheckpointSettings | None


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint is, before any weight is read. `dtype` is that of most weights."""

    config: WanConfig
    settings: CheckpointSettings | None
    parameters: int
    dtype: torch.dtype


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint that is known to fit but is not read."""

    config: WanConfig
    settings: CheckpointSettings | None
    specs: dict[str, TensorSpec]
    """original key -> shape and dtype that are wanted"""
    read: Callable[[str], Tensor]
    """original key -> tensor with the LoRA merged but not yet cast; it is the file's or fresh, so that it may be
    kept"""


def load_dit(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    which: str | None = None,
) -> LoadedCheckpoint:
    """Load a Wan 2.1 text-to-video DiT from any layout of METHOD's table.

    Args:
        path: .safetensors, .pt or .pth; a diffusers or original model folder, sharded or not.
        dtype: of all weights; None takes that of most weights in the file (float8 becomes bfloat16).
        lora: a LoRA file to merge (diag_core.lora), at `lora_strength`.
        which: entry of a training checkpoint, such as "generator"; None prefers "generator_ema".

    Weights of a .pt file that need no cast stay a mapping of the file: do not overwrite it while the model lives.

    Raises:
        CheckpointError: (a ValueError) names the file, what is wrong with it and what to do.
    """
    loaded = load_tensors(path, dtype=dtype, device=device, lora=lora, lora_strength=lora_strength, which=which)
    with torch.device("meta"):
        model = WanDiT(loaded.config)
    model.load_state_dict(loaded.tensors, assign=True)
    return LoadedCheckpoint(model.requires_grad_(False).eval(), loaded.config, loaded.settings)


def load_tensors(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    which: str | None = None,
) -> LoadedTensors:
    """The weights alone, all checked; arguments and errors as `load_dit`."""
    source = open_dit(path, dtype=dtype, lora=lora, lora_strength=lora_strength, which=which)
    return LoadedTensors(read_all(source.specs, source.read, torch.device(device)), source.config, source.settings)


def read_settings(path: str | Path) -> CheckpointSettings | None:
    """Settings of a checkpoint without its weights; raises CheckpointError as `load_dit` does."""
    weights = open_weights(path)
    with _naming(path):
        return _settings(weights, _metadata(weights))


def read_header(path: str | Path, *, lora: str | Path | None = None, which: str | None = None) -> CheckpointHeader:
    """Sizes and settings from a file's description alone, all checked; arguments and errors as `load_dit`."""
    source = open_dit(path, lora=lora, which=which)
    parameters = sum(torch.Size(spec.shape).numel() for spec in source.specs.values())
    dtype = next(iter(source.specs.values())).dtype
    return CheckpointHeader(source.config, source.settings, parameters, dtype)


def save_dit(
    path: str | Path,
    model: nn.Module | Mapping[str, Tensor],
    config: WanConfig,
    settings: CheckpointSettings | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write one safetensors file with original keys, which ComfyUI's UNETLoader opens.

    Args:
        model: a module or state dict; keys may carry the wrappers of FSDP, torch.compile and the like.
        dtype: of the file; None keeps each tensor's own.

    Raises:
        CheckpointError: keys that do not fit `config`.
        OSError: the file cannot be written; nothing is left behind, and what was at `path` stays.
    """
    tensors: Mapping[str, Tensor] = model.state_dict() if isinstance(model, nn.Module) else model
    names = original_names(tensors)
    check_keys({name: tensors[stored] for name, stored in names.items()}, config)
    specs = {
        name: TensorSpec(tuple(tensors[stored].shape), dtype or tensors[stored].dtype) for name, stored in names.items()
    }
    _write_comfyui(Path(path), OpenCheckpoint(config, settings, specs, lambda name: tensors[names[name]]))


def convert(
    src: str | Path,
    dst: str | Path,
    to: str = "comfyui",
    *,
    dtype: torch.dtype | None = None,
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    which: str | None = None,
    settings: CheckpointSettings | None = None,
) -> CheckpointSettings | None:
    """Rewrite a checkpoint, one tensor in memory at a time.

    Args:
        dst: a .safetensors file for "comfyui"; a folder for "diffusers", in which diffusers'
            WanTransformer3DModel.from_pretrained finds config.json and weights.
        settings: written into the metadata instead of the source's own.

    Returns:
        the settings written, None if there are none.

    Raises:
        CheckpointError: the source, as `load_dit`; or a destination that cannot be used.
        OSError: the destination cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"convert: to must be one of {', '.join(FORMATS)}, got {to!r}")
    dst = Path(dst)
    if to == "comfyui" and dst.suffix != ".safetensors":
        raise CheckpointError(f"{dst}: ComfyUI opens .safetensors files; give the destination that ending")
    if to == "comfyui" and dst.is_dir():
        raise CheckpointError(f"{dst}: this is a folder; give the path of a file")
    if to == "diffusers" and dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise CheckpointError(f"{dst}: it exists already; give a new or empty folder")
    source = open_dit(src, dtype=dtype, lora=lora, lora_strength=lora_strength, which=which)
    if settings is not None:
        source = replace(source, settings=settings)
    if to == "comfyui":
        _write_comfyui(dst, source)
    else:
        _write_diffusers(dst, source)
    return source.settings


def open_dit(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    lora: str | Path | None = None,
    lora_strength: float = 1.0,
    which: str | None = None,
) -> OpenCheckpoint:
    """A checkpoint to be read tensor by tensor; arguments and errors as `load_dit`, whose `read` may raise them too."""
    check_strength(lora_strength)
    weights = open_weights(path, which)
    with _naming(path):
        names = original_names(weights.specs)
        stored = {name: weights.specs[raw] for name, raw in names.items()}
        metadata = _metadata(weights)
        settings = _settings(weights, metadata)
        config = infer_config(stored, {**_from_config_json(weights.config), **_model_fields(metadata)})
        check_keys(stored, config)
        for name, spec in stored.items():
            if not spec.dtype.is_floating_point:
                raise CheckpointError(f"{name!r} is {spec.dtype}: the file is quantised. Use an fp16 or bf16 one")
    dtype = dtype or _main_dtype(stored)
    changes = {}
    if lora is not None:
        opened = open_lora(lora)
        with _naming(lora):
            changes = opened.changes(stored)

    def read(name: str) -> Tensor:
        try:
            tensor = weights.read(names[name])
        except (OSError, FormatError) as error:
            raise CheckpointError(f"{path}: {names[name]!r} cannot be read: {error}") from error
        if name in changes:
            tensor = changes[name].added_to(tensor, lora_strength)
        return tensor

    specs = {name: TensorSpec(spec.shape, dtype) for name, spec in stored.items()}
    return OpenCheckpoint(config, settings, specs, read)


class _naming:
    """Puts a file's name before the errors about its content."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{self.path}: {error}") from error


def _main_dtype(specs: Mapping[str, TensorSpec]) -> torch.dtype:
    elements: Counter[torch.dtype] = Counter()
    for spec in specs.values():
        elements[spec.dtype] += torch.Size(spec.shape).numel()
    dtype = elements.most_common(1)[0][0]
    return torch.bfloat16 if dtype in _FLOAT8 else dtype  # float8 is for storage: no layer computes in it


def _metadata(weights: Weights) -> dict[str, Any]:
    """Our own metadata, {} where there is none."""
    text = weights.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its metadata {METADATA_KEY!r} is no JSON ({error}). Convert it anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"its metadata {METADATA_KEY!r} is no JSON object. Convert it anew")
    return content


def _settings(weights: Weights, metadata: Mapping[str, Any]) -> CheckpointSettings | None:
    if metadata.get("settings") is None:
        return published_settings(weights.path)
    try:
        return CheckpointSettings.from_dict(metadata["settings"])
    except ValueError as error:
        raise CheckpointError(f"its metadata cannot be used: {error}. Convert it anew with other settings") from error


def _model_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    model = metadata.get("model")
    return {name: model[name] for name in ("num_heads", "text_len", "eps") if isinstance(model, dict) and name in model}


def _from_config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of a diffusers or an original Wan folder tells beyond the tensors."""
    heads = config.get("num_attention_heads", config.get("num_heads"))
    values = {"num_heads": heads, "text_len": config.get("text_len"), "eps": config.get("eps")}
    return {name: value for name, value in values.items() if value is not None}


def _file_metadata(source: OpenCheckpoint) -> dict[str, str]:
    content: dict[str, Any] = {"version": METADATA_VERSION, "model": source.config.to_dict()}
    if source.settings is not None:
        content["settings"] = source.settings.to_dict()
    return {METADATA_KEY: json.dumps(content, ensure_ascii=False)}


def _write_comfyui(path: Path, source: OpenCheckpoint) -> None:
    config = source.config
    if config.dim != HEAD_DIM * config.num_heads or config.text_dim != _COMFYUI_TEXT_DIM:
        warnings.warn(
            f"ComfyUI will misread this model: it assumes heads of width {HEAD_DIM} and text of width "
            f"{_COMFYUI_TEXT_DIM}, not {config.head_dim} and {config.text_dim}",
            stacklevel=3,
        )
    metadata = _file_metadata(source)
    if source.settings is not None and source.settings.causal:
        metadata["config"] = json.dumps({"transformer": {"causal_ar": True}})  # as later ComfyUI versions detect
    write_safetensors(path, source.specs, source.read, metadata)


def _write_diffusers(folder: Path, source: OpenCheckpoint) -> None:
    config = source.config
    stored = {to_diffusers_name(name): name for name in source.specs}
    content = {
        "_class_name": "WanTransformer3DModel",
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_channels": config.in_dim,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_dim,
        "patch_size": list(PATCH),
        "qk_norm": "rms_norm_across_heads",
        "text_dim": config.text_dim,
    }
    specs = {theirs: source.specs[ours] for theirs, ours in stored.items()}
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "config.json"
    try:
        with replacing(configuration) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode("utf-8"))
        write_safetensors(
            folder / _DIFFUSERS_FILE, specs, lambda name: source.read(stored[name]), _file_metadata(source)
        )
    except BaseException:
        with contextlib.suppress(OSError):
            configuration.unlink(missing_ok=True)
            folder.rmdir()  # it was new or empty
        raise
