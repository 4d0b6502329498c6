"""The commands of Wan's size: embed, the stages, export."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diag_core.settings import WAN_NEGATIVE_PROMPT

from ..devices import device_of
from ..distributed import agreement, rank, session, world_size
from ..fields import listing
from ..overrides import with_overrides
from ..recipes.wan import RECIPES, WanOdePairsRecipe, WanRecipe
from . import stages
from .embeddings import make_embeddings
from .export import DTYPES, export
from .inputs import examine
from .memory import GIB
from .prompts import read_prompts
from .report import lines
from .setup import Setup

TFLOPS = 300.0
"""of an H100 in bf16 training, where --tflops does not say otherwise: 30% of its peak, a guess"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """All of `COMMANDS`, to the parser's subparsers."""
    _add_embed(commands.add_parser("embed", help="cache the prompts' umT5 embeddings, for training Wan 2.1"))
    for name, make in RECIPES.items():
        text = str(make.__doc__).splitlines()[0]
        _add_stage(
            commands.add_parser(name, help=f"Wan 2.1: {text[0].lower()}{text[1:]}", description=f"{text} {_RESUMES}")
        )
    command = commands.add_parser("export", help="write a result of Wan's stages as a checkpoint or a LoRA for ComfyUI")
    command.add_argument("result", type=Path, help="the .safetensors file that a stage wrote, or its output folder")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    command.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="default: %(default)s")
    command.add_argument("--lora", action="store_true", help="the LoRA alone, of a run with lora.rank")
    command.add_argument("--overwrite", action="store_true", help="replace FILE")


_RESUMES = (
    "A run that was stopped goes on with the same command. Fields of the recipe are changed as field=value; --fields "
    "lists them."
)


def _add_embed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="text, one a line; or JSON lines")
    command.add_argument("--text-encoder", type=Path, required=True, metavar="PATH", help="umT5-XXL, file or folder")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where embeddings go")
    command.add_argument("--tokenizer", type=Path, metavar="PATH", help="where it is not beside the weights")
    command.add_argument("--negative", default=WAN_NEGATIVE_PROMPT, metavar="TEXT", help="default: Wan's standard one")
    command.add_argument("--limit", type=int, metavar="N", help="the first N prompts alone")
    command.add_argument("--shard-size", type=int, default=512, metavar="N", help="prompts a file (default: 512)")
    command.add_argument("--text-len", type=int, default=512, metavar="N", help="longest prompt (default: 512 tokens)")
    command.add_argument("--device", help="cpu, cuda, ...: the accelerator where there is one")


def _add_stage(command: argparse.ArgumentParser) -> None:
    command.add_argument("fields", nargs="*", metavar="field=value", help="changes of the recipe")
    command.add_argument("--fields", dest="list_fields", action="store_true", help="list the recipe's fields and stop")
    group = command.add_argument_group("files")
    group.add_argument("--generator", type=Path, metavar="FILE", help="the student to begin with: any Wan checkpoint")
    group.add_argument("--generator-lora", type=Path, metavar="FILE", help="a LoRA to merge into it first")
    group.add_argument("--teacher", type=Path, metavar="FILE", help="bidirectional Wan 2.1, 1.3B or 14B")
    group.add_argument(
        "--critic", type=Path, metavar="FILE",
        help="what the critic begins as (default: in stage2 the one that stage1 left beside the generator, else the "
        "teacher)",
    )  # fmt: skip
    group.add_argument("--embeddings", type=Path, metavar="FOLDER", help="of `embed`")
    group.add_argument("--pairs", type=Path, metavar="FOLDER", help="ODE pairs (default: ode_pairs in --out)")
    group.add_argument("--vae", type=Path, metavar="FILE", help="Wan VAE or TAEHV: makes and judges sample videos")
    group.add_argument("--out", type=Path, default=Path("runs/wan"), metavar="FOLDER", help="default: %(default)s")
    group = command.add_argument_group("machine")
    group.add_argument("--dry-run", action="store_true", help="check everything, print memory, work and time, and stop")
    group.add_argument("--gpus", type=int, metavar="N", help="GPUs in all, for --dry-run (default: those seen)")
    group.add_argument("--gpu-memory", type=float, metavar="GIB", help="of each (default: as seen)")
    group.add_argument(
        "--tflops", type=float, default=TFLOPS, metavar="X", help="reached by a GPU, for the times (default: 300)"
    )
    group.add_argument("--part", default="0/1", metavar="I/N", help="ode-pairs: the I-th of N processes, from 0")
    group.add_argument("--device", help="cpu, cuda, ...: the accelerator where there is one")


def _embed(options: argparse.Namespace) -> None:
    from diag_core.text import UMT5Encoder, encoder_identity

    _require_one_process("embed")
    for name in ("limit", "shard_size", "text_len"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    prompts = read_prompts(options.prompts)[: options.limit]
    device = device_of(options.device)
    identity = encoder_identity(options.text_encoder, text_len=options.text_len)

    def load() -> UMT5Encoder:
        return UMT5Encoder.load(
            options.text_encoder, tokenizer=options.tokenizer, device=device, text_len=options.text_len
        )

    make_embeddings(
        options.out, prompts, options.negative, encoder=identity, load=load, text_len=options.text_len,
        shard_size=options.shard_size,
    )  # fmt: skip


def _stage(options: argparse.Namespace) -> None:
    recipe = with_overrides(RECIPES[options.command](), options.fields)
    if options.list_fields:
        print(listing(recipe))  # noqa: T201 - this is the command line
        return
    device, part = device_of(options.device), _part(options.part)
    if part[1] > 1 and not (isinstance(recipe, WanOdePairsRecipe) and not recipe.sharded):
        raise ValueError("--part is for ode-pairs without sharded=true: leave it out, torchrun shares out all else")
    for name in ("gpus", "gpu_memory", "tflops"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if options.dry_run:
        gpus = options.gpus or max(1, torch.cuda.device_count())
        setup = _setup(options, recipe, gpus, device)
        inputs = examine(setup)
        print("\n".join(lines(setup, inputs, options.tflops)))  # noqa: T201
        if inputs.wrong:
            raise ValueError(f"{len(inputs.wrong)} of these would stop the training: see WRONG above")
        return
    with session(device) as own:
        setup = _setup(options, recipe, world_size(), own)
        with agreement():
            inputs = examine(setup)
            if inputs.wrong:
                raise ValueError(inputs.wrong[0])
        if isinstance(recipe, WanOdePairsRecipe) and not recipe.sharded and part == (0, 1):
            part = rank(), world_size()
        stages.run(setup, inputs, device=own, part=part)


def _setup(options: argparse.Namespace, recipe: WanRecipe, gpus: int, device: torch.device) -> Setup:
    return Setup(
        stage=options.command,
        recipe=recipe,
        out=options.out,
        embeddings=options.embeddings,
        generator=options.generator,
        generator_lora=options.generator_lora,
        teacher=options.teacher,
        critic=options.critic,
        pairs=options.pairs,
        vae=options.vae,
        gpus=gpus,
        gpu_memory=options.gpu_memory * GIB if options.gpu_memory else _memory(device),
    )


def _export(options: argparse.Namespace) -> None:
    _require_one_process("export")
    print(export(options.result, options.out, dtype=options.dtype, lora=options.lora, overwrite=options.overwrite))  # noqa: T201


def _require_one_process(command: str) -> None:
    """ValueError, told by one of them, where torchrun started several that would write the same files."""
    with session(torch.device("cpu")), agreement():
        if world_size() > 1:
            raise ValueError(f"{command} is for one process: run it without torchrun")


def _memory(device: torch.device) -> float | None:
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--part {text}: give two whole numbers such as 0/8, the first below the second")
    return int(number), int(count)


COMMANDS = {"embed": _embed, **dict.fromkeys(RECIPES, _stage), "export": _export}
