"""The moving-digits teacher: autoencoder, classifier, latents, and the parts of its training.

Each stage leaves its result in the output folder; what is there is not made again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.checkpoint import LoadedCheckpoint, save_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.vae import TinyVAE

from ..classifier import load_classifier, measure_accuracy, save_classifier, train_classifier
from ..data.latents import Shard, check_shard, load_latents, make_shard
from ..data.prompts import held_out_scenes, to_prompt
from ..evaluate import score_frames, score_videos
from ..recipes.toy import ToyRecipe
from ..roles import load_role
from ..videos import SHOWN, save_frames, save_videos
from . import autoencoder, flow_matching
from .scoring import sampler_of

log = logging.getLogger(__name__)

_SAMPLE_SEED = 10_000
"""of the prompts that are sampled during training"""
TEACHER = "teacher.safetensors"


def prepare(recipe: ToyRecipe, folder: Path, *, device: str = "cpu") -> None:
    """Autoencoder, classifier and latents, those that are not there yet."""
    vae = make_autoencoder(recipe, folder, device=device)
    if not (folder / "classifier.safetensors").exists():
        make_classifier(recipe, vae, folder / "classifier.safetensors")
    vae.to(device)
    for shard in _shards(recipe):
        make_shard(shard, folder / "latents", vae)
        log.info("latents: %s, shard %d", shard.kind, shard.number + 1)


def _shards(recipe: ToyRecipe) -> Iterator[Shard]:
    """The files of latents."""
    for kind, shards, size in (
        ("first_frames", recipe.image_shards, recipe.images_a_shard),
        ("videos", recipe.video_shards, recipe.videos_a_shard),
    ):
        for number in range(shards):
            yield Shard(
                kind=kind, number=number, seed=recipe.latents_seed, size=size, data=recipe.data, pairs=recipe.pairs
            )


def make_autoencoder(recipe: ToyRecipe, folder: Path, *, device: str = "cpu") -> TinyVAE:
    """The autoencoder of `vae.safetensors` on the CPU, trained first where there is none."""
    path = folder / "vae.safetensors"
    if not path.exists():
        autoencoder.train(recipe.autoencoder, folder / "autoencoder", device=device).rename(path)
    return autoencoder.load_autoencoder(path)


def make_classifier(recipe: ToyRecipe, vae: TinyVAE, path: Path) -> None:
    """Trains the judge of digits and writes how well it reads real renders, before and after the autoencoder."""
    model = train_classifier(recipe.classifier)
    videos = max(10, recipe.evaluation_prompts)
    real = measure_accuracy(model, videos=videos, data=recipe.data)
    decoded = measure_accuracy(
        model, videos=videos, data=recipe.data, reconstruct=lambda pixels: autoencoder.reconstruct(vae, pixels)
    )
    log.info("classifier: %s of test renders right, %s after the autoencoder", real, decoded)
    settings = {"steps": recipe.classifier.steps, "seed": recipe.classifier.seed}
    save_classifier(path, model, {"test_accuracy": real, "test_accuracy_reconstructed": decoded, **settings})


def train_part(recipe: ToyRecipe, folder: Path, part: str, *, device: str = "cpu") -> None:
    """Flow matching on the latents of `folder`: a part of the recipe, from the weights of the one before. Writes
    the averaged weights.

    Raises ValueError where the latents are missing, or are not the recipe's."""
    if part not in recipe.parts:
        raise ValueError(f"the teacher of this recipe has no part {part!r}: there are {', '.join(recipe.parts)}")
    result = folder / f"{part}.safetensors"
    if result.exists():
        return
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    for shard in _shards(recipe):
        check_shard(shard, folder / "latents", vae)
    before = list(recipe.parts)[: list(recipe.parts).index(part)]
    initial = None
    if before:
        path = folder / f"{before[-1]}.safetensors"
        role = load_role(path, "teacher so far", like=recipe.model, made_by=before[-1], device=torch.device("cpu"))
        initial = role.model.state_dict()
    encode = DemoTextEncoder(recipe.model.text_len, recipe.model.text_dim).encode
    watch = _watch(recipe, folder, part, device)
    data = load_latents(folder / "latents")
    weights = flow_matching.train(
        recipe.parts[part], data, encode, folder / part, initial=initial, device=device, watch=watch
    )
    save_dit(result, weights, recipe.model, recipe.settings, dtype=torch.bfloat16)


def _watch(recipe: ToyRecipe, folder: Path, part: str, device: str) -> flow_matching.Watch:
    """Samples a few held-out prompts now and then: videos in `samples` of the part's own folder, scores for the log. A
    part that trains on single frames alone samples those."""
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    classifier = load_classifier(folder / "classifier.safetensors")
    scenes = held_out_scenes(SHOWN, seed=_SAMPLE_SEED)
    settings = dataclasses.replace(recipe.settings, schedule=str(recipe.sample_steps))
    data, stage = recipe.data, recipe.parts[part]
    single = stage.video_steps == 0
    if single:
        data = dataclasses.replace(data, num_pixel_frames=1)
        settings = dataclasses.replace(settings, shift=stage.shift)
    model = WanDiT(recipe.model).to(device).eval()

    def watch(step: int, weights: dict[str, Tensor]) -> dict[str, float]:
        if step % recipe.sample_every:
            return {}
        model.load_state_dict(weights)
        sample = sampler_of(LoadedCheckpoint(model, recipe.model, settings), settings, vae, data)
        pixels = sample([to_prompt(scene) for scene in scenes], _SAMPLE_SEED)
        own, name = folder / part / "samples", f"step_{step:06d}"
        if single:
            save_frames(own, name, pixels)
            scores = score_frames(pixels, scenes, classifier)
        else:
            save_videos(own, name, pixels, fps=data.fps)
            scores = score_videos(pixels, scenes, classifier)
        return {name: float(value.nanmean()) for name, value in scores.items() if value.dim() == 1}

    return watch
