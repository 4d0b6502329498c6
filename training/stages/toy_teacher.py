"""The moving-digits model end to end: classifier, autoencoder, latents, causal flow matching, export, scores.

Each stage leaves its result in the output folder; what is there is not made again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diag_core import SeededNoise, generate
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint, load_dit, save_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.geometry import latent_frames, latent_size
from diag_core.vae import TinyVAE

from ..classifier import load_classifier, measure_accuracy, save_classifier, train_classifier
from ..data.latents import load_latents, make_shard
from ..data.moving_digits import MovingDigitsConfig
from ..data.prompts import held_out_scenes
from ..evaluate import Sampler, evaluate_videos
from ..io import save_json
from ..recipes.toy import ToyRecipe
from . import autoencoder, causal_flow

log = logging.getLogger(__name__)

_EVALUATION_SEED = 20_000  # of the held-out prompts


def run(recipe: ToyRecipe, folder: Path) -> dict[str, Any]:
    """All stages; returns the scores, which are also written to `scores.json`.

    Raises:
        ValueError: the folder holds the work of another recipe.
        OSError: a full disk, say; nothing is left half written.
    """
    vae_file = folder / "vae.safetensors"
    if not vae_file.exists():
        autoencoder.train(recipe.autoencoder, folder / "autoencoder").rename(vae_file)
    vae = autoencoder.load_autoencoder(vae_file)
    classifier_file = folder / "classifier.safetensors"
    if not classifier_file.exists():
        _make_classifier(recipe, vae, classifier_file)
    latents = folder / "latents"
    for kind, shards, size in (
        ("videos", recipe.video_shards, recipe.videos_a_shard),
        ("first_frames", recipe.image_shards, recipe.images_a_shard),
    ):
        for number in range(shards):
            make_shard(kind, number, folder=latents, vae=vae, seed=recipe.flow.seed, size=size)
            log.info("latents: %s, shard %d of %d", kind, number + 1, shards)
    encoder = DemoTextEncoder(recipe.flow.model.text_len, recipe.flow.model.text_dim)
    data = load_latents(latents)
    weights = causal_flow.train(recipe.flow, data, encoder.encode, folder / "flow", stop_after=recipe.flow_steps)
    weights = causal_flow.train(recipe.motion, data, encoder.encode, folder / "motion", initial=weights)
    save_dit(folder / "dit.safetensors", weights, recipe.flow.model, recipe.settings, dtype=torch.bfloat16)
    return evaluate(
        folder, prompts=recipe.evaluation_prompts, seeds=recipe.evaluation_seeds, report=folder / "scores.json"
    )


def _make_classifier(recipe: ToyRecipe, vae: TinyVAE, path: Path) -> None:
    """Trains the judge of digits and writes how well it reads real renders, before and after the autoencoder."""
    model = train_classifier(recipe.classifier)
    videos = recipe.evaluation_prompts
    real = measure_accuracy(model, videos=videos)
    decoded = measure_accuracy(model, videos=videos, reconstruct=lambda pixels: autoencoder.reconstruct(vae, pixels))
    log.info("classifier: %s of test renders right, %s after the autoencoder", real, decoded)
    settings = {"steps": recipe.classifier.steps, "seed": recipe.classifier.seed}
    save_classifier(path, model, {"test_accuracy": real, "test_accuracy_reconstructed": decoded, **settings})


def load_for_sampling(folder: Path, overrides: dict[str, Any]) -> tuple[LoadedCheckpoint, CheckpointSettings]:
    """The checkpoint in `folder`, float32, and its settings with those of `overrides` that are not None.

    Raises:
        ValueError: no settings in the file, or a wrong override.
    """
    loaded = load_dit(folder / "dit.safetensors", dtype=torch.float32)
    if loaded.settings is None:
        raise ValueError(
            f"{folder / 'dit.safetensors'} carries no sampling settings: write it with the toy-teacher command"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return loaded, dataclasses.replace(loaded.settings, **given)


def sampler_of(folder: Path, data: MovingDigitsConfig, overrides: dict[str, Any]) -> Sampler:
    """Prompts and a seed -> pixels, as a user of the checkpoint would sample them."""
    loaded, settings = load_for_sampling(folder, overrides)
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    encoder = DemoTextEncoder(loaded.config.text_len, loaded.config.text_dim)
    height, width = latent_size(data.size, data.size)

    def sample(prompts: list[str], seed: int) -> Tensor:
        with torch.no_grad():
            latents = generate(
                loaded.model,
                encoder.encode(prompts),
                settings.diagonal_schedule(),
                noise=SeededNoise(seed),
                num_latent_frames=latent_frames(data.num_pixel_frames),
                height=height,
                width=width,
                cache=settings.cache(),
                policy=settings.policy(),
                chunk_frames=settings.chunk_frames,
                step=settings.step,
                cfg=settings.cfg,
                negative=encoder.encode([settings.negative_prompt] * len(prompts)),
            )
            return vae.decode(latents)

    return sample


def evaluate(
    folder: Path,
    *,
    prompts: int,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """Scores the checkpoint in `folder` on held-out combinations of digit, colour and direction."""
    overrides = overrides or {}
    data = MovingDigitsConfig()
    _, settings = load_for_sampling(folder, overrides)
    result = evaluate_videos(
        sampler_of(folder, data, overrides),
        held_out_scenes(prompts, seed=_EVALUATION_SEED),
        load_classifier(folder / "classifier.safetensors"),
        seeds=seeds,
        chunk_frames=settings.chunk_frames,
    )
    result["settings"] = settings.to_dict()
    for name in ("digit", "direction", "colour"):
        log.info(
            "%s right: %.1f%% (spread over seeds %.1f, chance %.1f%%)",
            name, 100 * result["scores"][name], 100 * result["spread"][name], 100 * result["chance"][name],
        )  # fmt: skip
    if report is not None:
        save_json(report, result)
    return result
