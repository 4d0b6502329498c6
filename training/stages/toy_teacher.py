"""The moving-digits teacher end to end: autoencoder, classifier, latents, flow matching, export, scores.

Each stage leaves its result in the output folder; what is there is not made again, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diag_core import SeededNoise, WanDiT, generate
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint, load_dit, save_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.geometry import latent_frames, latent_size
from diag_core.vae import TinyVAE

from ..classifier import load_classifier, measure_accuracy, save_classifier, train_classifier
from ..compilation import forward_of
from ..data.latents import Shard, check_shard, load_latents, make_shard
from ..data.paths import MovingDigitsConfig
from ..data.prompts import held_out_scenes, to_prompt
from ..evaluate import Sampler, evaluate_videos, score_frames, score_videos
from ..evaluate import compare as compare_samplers
from ..io import save_json
from ..precision import half_is_quick, sampling_autocast
from ..recipes.toy import ToyRecipe
from ..roles import load_role
from ..videos import SHOWN, save_frames, save_videos
from . import autoencoder, flow_matching

log = logging.getLogger(__name__)

EVALUATION_SEED = 20_000
"""of the held-out prompts"""
_SAMPLE_SEED = 10_000
"""of the prompts that are sampled during training"""
TEACHER = "teacher.safetensors"
PARTS = {
    "looks": "looks.safetensors",
    "motion": "motion.safetensors",
    "videos": "videos.safetensors",
    "whole": "whole.safetensors",
    "teacher": TEACHER,
}
"""what the parts of its training leave in the output folder, in order"""


def run(recipe: ToyRecipe, folder: Path, *, device: str = "cpu") -> dict[str, Any]:
    """All stages; returns the teacher's scores, which are also written to `teacher_scores.json`.

    Raises:
        ValueError: the folder holds the work of another recipe.
        OSError: a full disk, say; nothing is left half written.
    """
    prepare(recipe, folder, device=device)
    for part in PARTS:
        train_part(recipe, folder, part, device=device)
    return evaluate(
        folder,
        prompts=recipe.evaluation_prompts,
        seeds=recipe.evaluation_seeds,
        file=TEACHER,
        data=recipe.data,
        report=folder / "teacher_scores.json",
    )


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
    """Flow matching on the latents of `folder`: one of `PARTS`, from the weights of the one before. Writes the averaged
    weights.

    Raises ValueError where the latents are missing, or are not the recipe's."""
    if (folder / PARTS[part]).exists():
        return
    vae = autoencoder.load_autoencoder(folder / "vae.safetensors")
    for shard in _shards(recipe):
        check_shard(shard, folder / "latents", vae)
    before = list(PARTS)[: list(PARTS).index(part)]
    initial = None
    if before:
        path = folder / PARTS[before[-1]]
        role = load_role(path, "teacher so far", like=recipe.model, made_by=before[-1], device=torch.device("cpu"))
        initial = role.model.state_dict()
    encode = DemoTextEncoder(recipe.model.text_len, recipe.model.text_dim).encode
    watch = _watch(recipe, folder, part, device)
    data = load_latents(folder / "latents")
    weights = flow_matching.train(
        recipe.parts[part], data, encode, folder / part, initial=initial, device=device, watch=watch
    )
    save_dit(folder / PARTS[part], weights, recipe.model, recipe.settings, dtype=torch.bfloat16)


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


def sampler_of(
    checkpoint: LoadedCheckpoint,
    settings: CheckpointSettings,
    vae: TinyVAE,
    data: MovingDigitsConfig,
    *,
    compiled: bool = False,
) -> Sampler:
    """Prompts and a seed -> pixels, as a user of the checkpoint would sample them: chunk by chunk, or, of a
    bidirectional one, the whole video at once. Float32 weights are run in autocast, others as they are.

    Args:
        compiled: fuse small operations with torch.compile, of a bidirectional one.

    Raises ValueError for a bidirectional one that is to be sampled in other steps than Euler's, and for a causal one
    that is to be compiled."""
    if compiled and settings.causal:
        raise ValueError(
            "a causal checkpoint is not compiled, for its forwards see a cache that grows: leave --compiled out"
        )
    if not settings.causal and settings.step != "euler":
        raise ValueError(f"a bidirectional checkpoint is sampled with step 'euler', its settings say {settings.step!r}")
    encoder = DemoTextEncoder(checkpoint.config.text_len, checkpoint.config.text_dim)
    height, width = latent_size(data.size, data.size)
    frames = latent_frames(data.num_pixel_frames)
    model, schedule = checkpoint.model, settings.diagonal_schedule()
    forward = forward_of(model, compiled=compiled)

    def in_chunks(context: Tensor, negative: Tensor, noise: SeededNoise) -> Tensor:
        with sampling_autocast(model):
            return generate(
                model,
                context,
                schedule,
                noise=noise,
                num_latent_frames=frames,
                height=height,
                width=width,
                cache=settings.cache(),
                policy=settings.policy(),
                chunk_frames=settings.chunk_frames,
                step=settings.step,
                cfg=settings.cfg,
                negative=negative.expand_as(context),
            )

    def whole(context: Tensor, negative: Tensor, noise: SeededNoise) -> Tensor:
        shape = (len(context), checkpoint.config.in_dim, frames, height, width)
        start = noise.initial(0, shape).to(model.device)
        return flow_matching.sample(
            model, start, context, negative, schedule.sigmas(0), cfg=settings.cfg, forward=forward
        )

    def sample(prompts: list[str], seed: int) -> Tensor:
        context, negative = (encoder.encode(texts).to(model.device) for texts in (prompts, [settings.negative_prompt]))
        with torch.no_grad():
            latents = (in_chunks if settings.causal else whole)(context, negative, SeededNoise(seed))
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
    difference = compare_samplers(
        *(sampler_of(loaded, settings, vae, data) for loaded, settings in ways),
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
