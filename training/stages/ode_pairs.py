"""Trajectories of the bidirectional teacher, from noise to video, for the causal student to begin with.

The teacher is sampled with Euler steps and classifier-free guidance. Of each trajectory some points are kept, and its
end. A folder holds shards `pairs_0000.safetensors`, ...; each is a function of the recipe, the teacher and its own
number, written whole or not at all, so that a run which was stopped goes on with the next one. A shard has

    points   float16  [N,P+1,C,F,H,W]: the trajectory at each kept level, the clean end last
    sigmas   float32  [P+1], the last 0
    prompts, checksums  in the metadata, JSON lists of N texts and of N CRC-32 of a trajectory's points

Legend: N trajectories, P points, B samples of a batch, C latent channels, F latent frames, H and W latent rows and
columns.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from diag_core import SeededNoise, WanDiT
from diag_core.denoising import denoise_chunk

from ..compilation import compile_blocks
from ..distributed import agreement, from_main, is_main, rank, world_size
from ..io import checksum, load_tensors, remove_leftovers, save_tensors
from ..precision import guided_flow, precision_of
from ..recipes.distillation import OdePairsRecipe
from .begin import FILE as BEGUN

log = logging.getLogger(__name__)

DrawPrompts = Callable[[np.random.Generator, int], list[str]]
"""(generator, how many) -> prompts to train on"""
Encode = Callable[[list[str]], Tensor]
"""prompts -> context [B,L,text_dim]"""


@dataclass(frozen=True)
class OdePairs:
    """All trajectories of a folder, in memory."""

    points: Tensor
    """float16 [N,P+1,C,F,H,W], the clean end last"""
    sigmas: Tensor
    """float32 [P+1], the last 0"""
    prompts: list[str]


def make_pairs(
    recipe: OdePairsRecipe,
    teacher: WanDiT,
    folder: Path,
    *,
    draw_prompts: DrawPrompts,
    encode: Encode,
    shape: tuple[int, int, int, int],
    part: tuple[int, int] = (0, 1),
) -> None:
    """Makes the shards of `folder` that are not there yet.

    Args:
        teacher: whole; or sharded over processes, which then make a shard each at the same time.
        shape: of a video, (C,F,H,W).
        part: (i, n): of the shards, only i, i + n, i + 2n, ..., where n processes share the work. A sharded teacher's
            processes share it anyway.

    Raises:
        OSError: a full disk, say; shards that are there are whole.
    """
    together = isinstance(teacher, FSDPModule)
    with agreement() if together else nullcontext():
        if part[1] == 1 and (is_main() or not together):
            remove_leftovers(folder)  # otherwise another process may be writing
    begun, rounds = time.monotonic(), list(_together(recipe, folder) if together else _alone(recipe, folder, part))
    negative = encode([recipe.negative_prompt]).to(teacher.device)
    if recipe.compiled:
        compile_blocks(teacher)
    for done, (number, kept) in enumerate(rounds, start=1):
        points, prompts = [], draw_prompts(np.random.default_rng([recipe.seed, number]), recipe.pairs_a_shard)
        for start in range(0, recipe.pairs_a_shard, recipe.batch):
            batch = prompts[start : start + recipe.batch]
            # Each video's noise has a number of its own, whatever the batch.
            first = number * recipe.pairs_a_shard + start
            seeds = [(recipe.seed << 32) + first + i for i in range(len(batch))]
            context = encode(batch).to(teacher.device)
            points.append(trajectories(recipe, teacher, context, negative, SeededNoise(seeds), shape).half().cpu())
        levels = torch.tensor([*(recipe.levels[i] for i in recipe.point_indices), 0.0])
        with agreement() if together else nullcontext():
            if kept:
                save_shard(folder / shard_name(number), torch.cat(points), levels, prompts)
        pace = (time.monotonic() - begun) / done
        log.info(
            "ode-pairs: shard %d of %d, %.2f s/pair, %.0f min left",
            number + 1, recipe.shards, pace / recipe.pairs_a_shard, pace * (len(rounds) - done) / 60,
        )  # fmt: skip


def save_shard(path: Path, points: Tensor, sigmas: Tensor, prompts: list[str]) -> None:
    """Writes trajectories [N,P+1,C,F,H,W] with their levels [P+1] and prompts as a shard."""
    sums = [checksum(row) for row in points]
    save_tensors(
        path, {"points": points, "sigmas": sigmas}, {"kind": "ode_pairs", "prompts": prompts, "checksums": sums}
    )


def shard_name(number: int) -> str:
    return f"pairs_{number:04d}.safetensors"


def missing_shards(folder: Path) -> list[int]:
    """Numbers of the shards that the folder is to have and has not. None are missing where shards stand alone, without
    what they were begun with."""
    begun = folder / BEGUN
    if not begun.exists():
        return []
    count = json.loads(begun.read_text(encoding="utf-8"))["recipe"]["shards"]
    return [number for number in range(count) if not (folder / shard_name(number)).exists()]


def _alone(recipe: OdePairsRecipe, folder: Path, part: tuple[int, int]) -> Iterator[tuple[int, bool]]:
    """(number, True) of each shard that is this process's and not there."""
    for number in range(part[0], recipe.shards, part[1]):
        if not (folder / shard_name(number)).exists():
            yield number, True


def _together(recipe: OdePairsRecipe, folder: Path) -> Iterator[tuple[int, bool]]:
    """(number, whether to keep it): as many of each process, since none can run a sharded teacher without the others.
    In the last round some may repeat what another one makes."""
    missing = from_main([number for number, _ in _alone(recipe, folder, (0, 1))])
    for start in range(0, len(missing), world_size()):
        own = start + rank()
        yield missing[min(own, len(missing) - 1)], own < len(missing)


@torch.no_grad()
def trajectories(
    recipe: OdePairsRecipe,
    teacher: WanDiT,
    context: Tensor,
    negative: Tensor,
    noise: SeededNoise,
    shape: tuple[int, int, int, int],
) -> Tensor:
    """Points and ends [B,P+1,C,F,H,W] of the trajectories of a batch of prompts, from noise of their own."""
    wanted, kept = set(recipe.point_indices), []
    levels = recipe.levels
    precision = precision_of(recipe.precision, context.device)

    def predict(x: Tensor, sigma: float) -> Tensor:
        if levels.index(sigma) in wanted:
            kept.append(x)
        return guided_flow(teacher, x, sigma, context, negative, recipe.cfg, precision=precision)

    start = noise.initial(0, (context.shape[0], *shape)).to(context.device, torch.float32)
    end = denoise_chunk(predict, start, levels, step="euler")
    return torch.stack([*kept, end], dim=1)


def load_pairs(folder: Path) -> OdePairs:
    """All shards of a folder.

    Raises:
        ValueError: there are none, some are not made yet, or a shard is damaged.
    """
    paths = sorted(folder.glob("pairs_*.safetensors"))
    if not paths:
        raise ValueError(f"no pairs_*.safetensors in {folder}: run the stage ode-pairs first")
    if missing := missing_shards(folder):
        raise ValueError(
            f"{folder / shard_name(missing[0])} is not made yet: run the stage ode-pairs first, it goes on"
        )
    shards = [load_tensors(path) for path in paths]
    for path, (tensors, metadata) in zip(paths, shards, strict=True):
        if [checksum(row) for row in tensors["points"]] != json.loads(metadata.get("checksums", "[]")):
            raise ValueError(
                f"{path} is damaged, or has no checksums: delete it and run the stage ode-pairs again, which makes it "
                "anew"
            )
    return OdePairs(
        points=torch.cat([tensors["points"] for tensors, _ in shards]),
        sigmas=shards[0][0]["sigmas"],
        prompts=[prompt for _, metadata in shards for prompt in json.loads(metadata["prompts"])],
    )
