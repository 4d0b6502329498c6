"""Scores of a moving-digits checkpoint, teacher or student, sampled as its user would: alone, or against another."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diag_core import SeededNoise
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint, load_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.geometry import latent_frames, latent_size
from diag_core.vae import TinyVAE

from ..classifier import load_classifier
from ..compilation import compile_blocks
from ..data.paths import MovingDigitsConfig
from ..data.prompts import held_out_scenes
from ..evaluate import Sampler, evaluate_videos
from ..evaluate import compare as compare_samplers
from ..io import save_json
from ..precision import half_is_quick
from ..sampling import sample_latents
from . import autoencoder

log = logging.getLogger(__name__)

EVALUATION_SEED = 20_000
"""of the held-out prompts"""


def sampler_of(
    checkpoint: LoadedCheckpoint,
    settings: CheckpointSettings,
    vae: TinyVAE,
    data: MovingDigitsConfig,
    *,
    compiled: bool = False,
) -> Sampler:
    """Prompts and a seed -> pixels, as a user of the checkpoint would sample them (`sample_latents`).

    Args:
        compiled: fuse small operations with torch.compile, of a bidirectional one.

    Raises:
        ValueError: a causal one is to be compiled.
    """
    if compiled and settings.causal:
        raise ValueError(
            "a causal checkpoint is not compiled, for its forwards see a cache that grows: leave --compiled out"
        )
    encoder = DemoTextEncoder(checkpoint.config.text_len, checkpoint.config.text_dim)
    height, width = latent_size(data.size, data.size)
    shape = (checkpoint.config.in_dim, latent_frames(data.num_pixel_frames), height, width)
    model = checkpoint.model
    if compiled:
        compile_blocks(model)

    def sample(prompts: list[str], seed: int) -> Tensor:
        context, negative = (encoder.encode(texts).to(model.device) for texts in (prompts, [settings.negative_prompt]))
        with torch.no_grad():
            latents = sample_latents(model, settings, context, negative, SeededNoise(seed), shape)
            return vae.decode(latents.to(next(vae.parameters()).device)).float().cpu()

    return sample


def load_for_sampling(path: Path, overrides: dict[str, Any]) -> tuple[LoadedCheckpoint, CheckpointSettings]:
    """A checkpoint as it is stored, in float32 on a CPU that is slow at less, and its settings with those of
    `overrides` that are not None.

    Raises ValueError for a file without settings, or for a wrong override."""
    loaded = load_dit(path, dtype=None if half_is_quick("cpu") else torch.float32)
    if loaded.settings is None:
        raise ValueError(f"{path} carries no sampling settings: write it with the stage that trains it")
    given = {name: value for name, value in overrides.items() if value is not None}
    return loaded, dataclasses.replace(loaded.settings, **given)


def evaluate(
    folder: Path,
    *,
    prompts: int,
    seeds: Sequence[int],
    file: str = "dit.safetensors",
    overrides: dict[str, Any] | None = None,
    data: MovingDigitsConfig | None = None,
    compiled: bool = False,
    report: Path | None = None,
) -> dict[str, Any]:
    """Scores the checkpoint `file` of a folder with an autoencoder and a classifier, on held-out combinations.

    Args:
        overrides: sampling settings instead of the checkpoint's.
        data: sizes of the videos; those that the autoencoder was trained on when left out.
        compiled: fuse small operations with torch.compile, of a bidirectional checkpoint.
        report: also write the scores there.
    """
    data = data or autoencoder.data_of(folder / "vae.safetensors")
    loaded, settings = load_for_sampling(folder / file, overrides or {})
    result = evaluate_videos(
        sampler_of(loaded, settings, autoencoder.load_autoencoder(folder / "vae.safetensors"), data, compiled=compiled),
        held_out_scenes(prompts, seed=EVALUATION_SEED),
        load_classifier(folder / "classifier.safetensors"),
        seeds=seeds,
        chunk_frames=settings.chunk_frames,
        data=data,
    )
    result["settings"] = settings.to_dict()
    for name in ("digit", "direction", "motion", "colour"):
        log.info(
            "%s right: %.1f%% (spread over seeds %.1f, chance %.1f%%)",
            name, 100 * result["scores"][name], 100 * result["spread"][name], 100 * result["chance"][name],
        )  # fmt: skip
    if report is not None:
        save_json(report, result)
    return result


def compare(
    folder: Path,
    *,
    prompts: int,
    file: str,
    schedule: str | None,
    against_file: str,
    against_schedule: str | None,
    score: str = "digit",
    seed: int = 0,
    data: MovingDigitsConfig | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """How much better or worse one way to sample is than another, on the same prompts and from the same noise.

    Args:
        file, schedule: a checkpoint of the folder and its step lists, its own where None.
        against_file, against_schedule: the other.
        score: a key of `score_videos`.
        report: also write the result there.

    Returns:
        {"score", "a": {...}, "b": {...}, "difference": {"mean", "lower", "prompts"}}; `lower` is the one-sided 95%
        bootstrap bound of the mean of a - b.
    """
    data = data or autoencoder.data_of(folder / "vae.safetensors")
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    ways = [
        load_for_sampling(folder / name, {"schedule": lists})
        for name, lists in ((file, schedule), (against_file, against_schedule))
    ]
    first, second = (sampler_of(loaded, settings, vae, data) for loaded, settings in ways)
    difference = compare_samplers(
        first,
        second,
        held_out_scenes(prompts, seed=EVALUATION_SEED),
        load_classifier(folder / "classifier.safetensors"),
        score=score,
        seed=seed,
        chunk_frames=ways[0][1].chunk_frames,
    )
    names = [{"file": name, "schedule": way[1].schedule} for name, way in zip((file, against_file), ways, strict=True)]
    log.info(
        "%s at %s against %s at %s: %s %+.2f points on %d prompts, 95%% sure above %+.2f",
        *names[0].values(), *names[1].values(), score, 100 * difference.mean, difference.prompts,
        100 * difference.lower,
    )  # fmt: skip
    result = {
        "score": score, "seed": seed, "a": names[0], "b": names[1], "difference": difference.to_dict()
    }  # fmt: skip
    if report is not None:
        save_json(report, result)
    return result
