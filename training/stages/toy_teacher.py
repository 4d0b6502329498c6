"""The moving-digits teacher: autoencoder, classifier, latents, and the parts of its training.

Each stage leaves its result in the output folder; what is there is not made again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from diag_core import WanDiT
from diag_core.checkpoint import save_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.vae import TinyVAE

from .. import trainer
from ..classifier import DigitClassifier, load_classifier, measure_accuracy, save_classifier, train_classifier
from ..data.latents import Shard, check_shard, load_latents, make_shard
from ..ema import EMA
from ..recipes.toy import ToyRecipe
from ..roles import digest, digest_of_values, load_role, need
from . import autoencoder
from .begin import begin
from .flow_matching import FlowMatching
from .gallery import DigitsGallery, rendered

log = logging.getLogger(__name__)

VAE, CLASSIFIER, TEACHER = "vae.safetensors", "classifier.safetensors", "teacher.safetensors"


def prepare(recipe: ToyRecipe, folder: Path, *, device: str = "cpu") -> None:
    """Autoencoder, classifier and latents, those that are not there yet."""
    vae = make_autoencoder(recipe, folder, device=device)
    if not (folder / CLASSIFIER).exists():
        make_classifier(recipe, vae, folder / CLASSIFIER)
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
    """The autoencoder of `vae.safetensors` on the CPU, trained first where there is none.

    Raises:
        ValueError: the one that is there was trained by another recipe.
        Collapse, Stopped, OSError: as `trainer.train`.
    """
    path = folder / VAE
    if not path.exists():
        autoencoder.train(recipe.autoencoder, folder / "autoencoder", device=device).rename(path)
    begin(folder / "autoencoder", recipe.autoencoder, {}, result=path)
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

    Raises:
        ValueError: an input is missing or not the recipe's, the part was begun with another recipe or other latents, or
            there is no compiler for what is to be compiled.
        Collapse, Stopped, OSError: as `trainer.train`.
    """
    if part not in recipe.parts:
        raise ValueError(f"the teacher of this recipe has no part {part!r}: there are {', '.join(recipe.parts)}")
    stage = recipe.parts[part]
    before = list(recipe.parts)[: list(recipe.parts).index(part)][-1:]
    result, begun_as = folder / f"{part}.safetensors", [folder / f"{name}.safetensors" for name in before]
    inputs = {path.name: digest(path) for path in begun_as if path.exists()}
    if result.exists():
        begin(folder / part, stage, inputs, result=result)
        return
    vae = autoencoder.load_autoencoder(need(folder / VAE, "autoencoder")).to(device)
    classifier = load_classifier(need(folder / CLASSIFIER, "classifier"))
    shards = list(_shards(recipe))
    for shard in shards:
        check_shard(shard, folder / "latents", vae)
    initial = None
    for path in begun_as:
        role = load_role(path, "teacher so far", like=recipe.model, made_by=path.stem, device=torch.device("cpu"))
        initial = role.model.state_dict()
    inputs["latents"] = digest_of_values([shard.made_with(vae) for shard in shards])
    begin(folder / part, stage, inputs)
    encode = DemoTextEncoder(recipe.model.text_len, recipe.model.text_dim).encode
    task = FlowMatching(stage, load_latents(shards, folder / "latents"), encode, initial=initial, device=device)
    gallery = _gallery(recipe, folder, part, task.ema, vae, classifier, device)
    trainer.train(part, task, stage, folder / part, gallery=gallery)
    save_dit(result, task.ema.state_dict(), recipe.model, recipe.settings, dtype=torch.bfloat16)


def _gallery(
    recipe: ToyRecipe, folder: Path, part: str, ema: EMA, vae: TinyVAE, classifier: DigitClassifier, device: str
) -> DigitsGallery:
    """Samples beside real renders. A part that trains on single frames alone samples those."""
    stage, data = recipe.parts[part], recipe.data
    settings = dataclasses.replace(recipe.settings, schedule=str(recipe.sample_steps))
    if stage.on_images_alone:
        data = dataclasses.replace(data, num_pixel_frames=1)
        settings = dataclasses.replace(settings, shift=stage.shift)
    return DigitsGallery(
        WanDiT(recipe.model).to(device).eval(),  # not the one that is trained: that may be compiled, for other shapes
        ema,
        settings,
        reference=rendered(data),
        vae=vae,
        classifier=classifier,
        data=data,
        count=stage.sample_prompts,
        folder=folder / part,
    )
