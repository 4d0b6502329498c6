"""Rewrite a checkpoint: one safetensors file that ComfyUI opens, or a folder for diffusers.

How the model is sampled travels in the file's metadata, and `generate` takes its defaults from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..checkpoint import FORMATS
    from ..settings import PRESETS

    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="checkpoint: .safetensors, .pt, .pth or a model folder"
    )
    parser.add_argument(
        "target", type=Path, metavar="TARGET", help="a .safetensors file, or for diffusers a new folder"
    )
    parser.add_argument("--to", choices=FORMATS, default="comfyui", help="default: %(default)s")
    parser.add_argument("--dtype", choices=values.DTYPES, help="of the weights (default: the source's)")
    parser.add_argument("--lora", type=Path, metavar="FILE", help="LoRA to merge")
    parser.add_argument("--lora-strength", type=values.number, default=1.0, metavar="X", help="default: 1")
    parser.add_argument(
        "--which", metavar="NAME", help="entry of a training checkpoint, such as generator (default: its EMA)"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="say in the file that it is sampled like this")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET")


def run(options: argparse.Namespace) -> int:
    import torch

    from ..checkpoint import convert
    from ..settings import PRESETS

    if options.target.is_file() and not options.overwrite:
        raise ValueError(f"{options.target}: it exists already; give another name, or --overwrite")
    written = convert(
        options.source,
        options.target,
        options.to,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        lora=options.lora,
        lora_strength=options.lora_strength,
        which=options.which,
        settings=None if options.preset is None else PRESETS[options.preset],
    )
    if written is None:
        sampling = "it does not say how it is sampled: --preset would"
    else:
        sampling = f"schedule {written.schedule}, shift {written.shift:g}, KV noise {written.kv_noise:g}"
    print(f"{options.target}: written for {options.to}; {sampling}")
    return 0
