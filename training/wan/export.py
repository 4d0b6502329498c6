"""Results as files that ComfyUI and everyone else open: the whole model, or a LoRA alone."""

from __future__ import annotations

from pathlib import Path

import torch

from diag_core.checkpoint import convert, read_header
from diag_core.safetensors_file import SafetensorsFile

from ..stages.begin import FILE as BEGUN
from .lora import lora_path, save_lora

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export(result: Path, out: Path, *, dtype: str = "bf16", lora: bool = False, overwrite: bool = False) -> str:
    """Writes the averaged weights of a stage.

    Args:
        result: the .safetensors file that a stage wrote; or the output folder, whose last stage is taken.
        lora: the LoRA alone, of a run with lora.rank, for LoraLoaderModelOnly.

    Returns:
        what was taken and written, in words; of an output folder also which stages it has no result of yet.

    Raises:
        ValueError: there is no such result, it is of another kind, or `out` cannot be used.
        OSError: `out` cannot be written; nothing is left behind.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: ComfyUI opens .safetensors files; give it that ending")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out}: it exists already; give another name, or --overwrite")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    source = find_result(result)
    if out.resolve() in (source.resolve(), lora_path(source).resolve()):
        raise ValueError(f"--out {out}: this is the result itself; give another name")
    written = _export_lora(source, out, dtype) if lora else _export_model(source, out, dtype)
    taken = lora_path(source) if lora else source
    return "\n".join([f"{taken} -> {out}: {written}", *_unfinished(result, source)])


_LATEST_FIRST = ("stage2", "stage1", "ode_init")


def find_result(path: Path) -> Path:
    """The result file that is meant: itself, or the last stage's in an output folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(
            f"{path}: there is no such result. Give the .safetensors file that a stage wrote, or its folder"
        )
    for name in _LATEST_FIRST:
        if (path / f"{name}.safetensors").is_file():
            return path / f"{name}.safetensors"
    begun = any(path.glob("*/recipe.json"))
    why = "no stage in it is finished: run the same command again, it goes on" if begun else "it holds no result"
    raise ValueError(f"{path}: {why}. A result is ode_init, stage1 or stage2.safetensors")


def _unfinished(result: Path, source: Path) -> list[str]:
    """A line for each later stage of the folder that has begun and could be taken for the one that was exported."""
    if not result.is_dir():
        return []
    later = _LATEST_FIRST[: _LATEST_FIRST.index(source.stem)]
    return [
        f"{result / name} has begun and is not finished: give its command again, then export again with --overwrite"
        for name in later
        if (result / name / BEGUN).exists()
    ]


def _export_model(source: Path, out: Path, dtype: str) -> str:
    header = read_header(source)
    if header.settings is None:
        raise ValueError(
            f"{source}: it does not say how it is sampled, so it is no result of a stage. For other checkpoints "
            "there is `python -m diag_core convert --preset`"
        )
    convert(source, out, dtype=DTYPES[dtype])
    settings = header.settings
    return (
        f"{header.parameters:,} parameters in {dtype}, schedule {settings.schedule}, shift {settings.shift:g}, "
        f"KV noise {settings.kv_noise:g}"
    )


def _export_lora(source: Path, out: Path, dtype: str) -> str:
    path = lora_path(source)
    if not path.is_file():
        raise ValueError(f"{path} is missing: {source} was trained in all its weights (lora.rank=0). Leave out --lora")
    file = SafetensorsFile(path)
    tensors = {name: file.read(name) for name in file.specs}
    metadata = {name: text for name, text in file.metadata.items() if name != "format"}
    save_lora(out, tensors, metadata, dtype=DTYPES[dtype])
    layers = sum(name.endswith(".lora_A.weight") for name in tensors)
    return f"a LoRA of {layers} layers in {dtype}; load it onto the checkpoint that the stage began with"
