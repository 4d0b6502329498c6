"""Moving digits, from nothing to the distilled checkpoint: which stages there are, what each reads and writes.

A stage leaves its result in the output folder. What is there is not made again, and what was interrupted goes on.

    autoencoder  vae.safetensors             ode-pairs  ode_pairs/pairs_*.safetensors
    classifier   classifier.safetensors      ode-init   ode_init.safetensors
    latents      latents/*.safetensors       stage1     stage1.safetensors
    looks        looks.safetensors                      stage1_critic.safetensors
    motion       motion.safetensors          stage2     stage2.safetensors
    videos       videos.safetensors          export     dit.safetensors
    whole        whole.safetensors           evaluate   scores/*.json
    teacher      teacher.safetensors

Only some recipes have the part `whole`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint, save_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.geometry import latent_frames, latent_size

from ..classifier import load_classifier
from ..data.prompts import random_prompt, sample_scene
from ..distributed import agreement, gathered, is_main, session, world_size
from ..ema import EMA
from ..io import load_tensors, save_json
from ..recipes.distillation import DistilRecipe
from ..recipes.loop import LoopRecipe
from ..recipes.moving_digits import MovingDigitsRecipe
from ..roles import Roles, digest, digest_of, load_role, need
from ..trainer import Task, train
from ..videos import SHOWN, save_videos
from . import autoencoder, scoring, toy_teacher
from .begin import begin
from .distil import Distil
from .gallery import DigitsGallery, teachers
from .ode_init import OdeInit
from .ode_pairs import load_pairs, make_pairs, shard_name
from .toy_teacher import CLASSIFIER, TEACHER, VAE

log = logging.getLogger(__name__)

ODE_INIT, STAGE1, STAGE2, FINAL = "ode_init.safetensors", "stage1.safetensors", "stage2.safetensors", "dit.safetensors"
CRITIC = "stage1_critic.safetensors"


def draw_prompts(rng: np.random.Generator, count: int) -> list[str]:
    """Prompts of training combinations, in random phrasings."""
    return [random_prompt(sample_scene(rng), rng) for _ in range(count)]


@dataclass(frozen=True)
class Pipeline:
    """One run of the recipe in one folder; each method is a stage."""

    recipe: MovingDigitsRecipe
    folder: Path
    device: torch.device

    # -- preparation --------------------------------------------------------------------------------------------------

    def autoencoder(self) -> None:
        toy_teacher.make_autoencoder(self.recipe.preparation, self.folder, device=str(self.device))

    def classifier(self) -> None:
        path = self.folder / CLASSIFIER
        if not path.exists():
            vae = autoencoder.load_autoencoder(self._need(VAE, "autoencoder"))
            toy_teacher.make_classifier(self.recipe.preparation, vae, path)

    def latents(self) -> None:
        self._need(VAE, "autoencoder")
        self._need(CLASSIFIER, "classifier")
        toy_teacher.prepare(self.recipe.preparation, self.folder, device=str(self.device))

    def looks(self) -> None:
        self._train_teacher("looks")

    def motion(self) -> None:
        self._train_teacher("motion")

    def videos(self) -> None:
        self._train_teacher("videos")

    def whole(self) -> None:
        self._train_teacher("whole")

    def teacher(self) -> None:
        self._train_teacher("teacher")

    def _train_teacher(self, part: str) -> None:
        toy_teacher.train_part(self.recipe.preparation, self.folder, part, device=str(self.device))

    # -- distillation -------------------------------------------------------------------------------------------------

    def ode_pairs(self) -> None:
        teacher = self._model(TEACHER, "teacher", "bidirectional teacher").model
        folder = self.folder / "ode_pairs"
        begin(folder, self.recipe.ode_pairs, self._digests(TEACHER))
        make_pairs(
            self.recipe.ode_pairs, teacher, folder, draw_prompts=draw_prompts, encode=self._encode, shape=self._shape
        )
        if not (folder / "samples").exists():
            vae = autoencoder.load_autoencoder(self._need(VAE, "autoencoder"))
            ends = load_tensors(folder / shard_name(0))[0]["points"][:SHOWN, -1].float()
            with torch.no_grad():
                save_videos(folder / "samples", "ends", vae.decode(ends), fps=self.recipe.preparation.data.fps)

    def ode_init(self) -> None:
        recipe = self.recipe.ode_init
        result = self.folder / ODE_INIT
        inputs = self._digests(TEACHER)
        if not result.exists():
            inputs["ode_pairs"] = digest_of(sorted((self.folder / "ode_pairs").glob("pairs_*.safetensors")))
        begin(self.folder / "ode_init", recipe, inputs, free=("steps",), result=result)
        if result.exists():
            return
        teacher = self._model(TEACHER, "teacher", "bidirectional teacher")
        student = self._model(TEACHER, "teacher", "bidirectional teacher").model
        task = OdeInit(recipe, student, load_pairs(self.folder / "ode_pairs"), self._encode)
        settings = self._settings(self.recipe.stage1, "ODE initialisation")
        self._train("ode-init", task, recipe, student, task.ema, settings, teacher)
        self._save(ODE_INIT, task.ema.state_dict(), student.config, settings)

    def stage1(self) -> None:
        self._distil(
            "stage1", self.recipe.stage1, (ODE_INIT, "ode-init"), (TEACHER, "teacher"), STAGE1, hands_on=CRITIC
        )

    def stage2(self) -> None:
        # Of a critic that knows the student already: one that is still the teacher gives no difference but guidance's.
        self._distil("stage2", self.recipe.stage2, (STAGE1, "stage1"), (CRITIC, "stage1"), STAGE2)

    def _distil(
        self,
        name: str,
        recipe: DistilRecipe,
        student: tuple[str, str],
        critic: tuple[str, str],
        result: str,
        *,
        hands_on: str | None = None,
    ) -> None:
        """`student` and `critic`: the files that they begin as, and the stages that make these; `hands_on`: where the
        critic is written in the end."""
        for file in (student, critic):
            self._need(*file)
        finished = all((self.folder / file).exists() for file in (result, hands_on) if file is not None)
        inputs = self._digests(*dict.fromkeys((TEACHER, student[0], critic[0])))
        begin(self.folder / name, recipe, inputs, free=("steps",), result=self.folder / result if finished else None)
        if finished:
            return
        teacher = self._model(TEACHER, "teacher", "bidirectional teacher")
        compares = recipe.weights.needs_teacher_rollout
        roles = Roles(
            generator=self._model(*student, "student to begin with").model,
            real_score=teacher.model,
            fake_score=self._model(*critic, "critic to begin with").model,
            regression=self._model(*student, "frozen student to compare with") if compares else None,
        )
        task = Distil(recipe, roles, draw_prompts=draw_prompts, encode=self._encode, shape=self._shape)
        settings = self._settings(recipe, name.replace("stage", "stage "))
        self._train(name, task, recipe, roles.generator, task.ema, settings, teacher)
        if hands_on is not None:
            self._save(hands_on, roles.fake_score.state_dict(), teacher.config, None)
        self._save(result, task.ema.state_dict(), roles.generator.config, settings)

    # -- results ------------------------------------------------------------------------------------------------------

    def export(self) -> None:
        """The end result, as it is shipped: stage 2's averaged weights in bfloat16, with how to sample them."""
        loaded = self._model(STAGE2, "stage2", "distilled student")
        settings = replace(self._settings(self.recipe.stage2, ""), title=self.recipe.title)
        save_dit(self.folder / FINAL, loaded.model, loaded.config, settings, dtype=torch.bfloat16)

    def evaluate(self) -> None:
        """Scores of every stage's result that is there, each in a file of its own."""
        self._need(FINAL, "export")
        preparation = self.recipe.preparation
        for file in (FINAL, TEACHER, ODE_INIT, STAGE1):
            if not (self.folder / file).exists():
                continue
            report = self.folder / "scores" / f"{Path(file).stem}.json"
            made_with: dict[str, Any] = {
                "prompts": preparation.evaluation_prompts, "seeds": list(preparation.evaluation_seeds)
            }  # fmt: skip
            made_with["weights"] = digest(self.folder / file)
            if _made_with(report) == made_with:
                continue
            log.info("evaluate: %s", file)
            result = scoring.evaluate(
                self.folder, prompts=preparation.evaluation_prompts, seeds=preparation.evaluation_seeds, file=file,
                data=preparation.data, compiled=file == TEACHER and preparation.teacher.compiled,
            )  # fmt: skip
            save_json(report, {**result, "made_with": made_with})

    # -- shared -------------------------------------------------------------------------------------------------------

    def _train(
        self,
        name: str,
        task: Task,
        recipe: LoopRecipe,
        model: WanDiT,
        ema: EMA,
        settings: CheckpointSettings,
        teacher: LoadedCheckpoint,
    ) -> None:
        folder, data = self.folder / name.replace("-", "_"), self.recipe.preparation.data
        vae = autoencoder.load_autoencoder(self._need(VAE, "autoencoder")).to(self.device)
        gallery = DigitsGallery(
            model, ema, settings,
            reference=teachers(teacher, vae, data),
            vae=vae,
            classifier=load_classifier(self._need(CLASSIFIER, "classifier")),
            data=data,
            count=recipe.sample_prompts,
            folder=folder,
        )  # fmt: skip
        train(name, task, recipe, folder, gallery=gallery)

    def _save(
        self, file: str, weights: Mapping[str, Tensor], config: WanConfig, settings: CheckpointSettings | None
    ) -> None:
        """All processes call it."""
        whole = gathered(weights, torch.bfloat16)
        with agreement():
            if is_main():
                save_dit(self.folder / file, whole, config, settings, dtype=torch.bfloat16)

    def _settings(self, recipe: DistilRecipe, stage: str) -> CheckpointSettings:
        title = f"{self.recipe.title}, {stage}"
        return recipe.settings(title=title, license=self.recipe.license, text_encoder=self._text_encoder)

    def _need(self, file: str, made_by: str) -> Path:
        return need(self.folder / file, made_by)

    def _model(self, file: str, made_by: str, role: str) -> LoadedCheckpoint:
        like = self.recipe.preparation.model
        return load_role(self.folder / file, role, like=like, made_by=made_by, device=self.device)

    def _digests(self, *files: str) -> dict[str, str]:
        return {file: digest(self.folder / file) for file in files}

    def _encode(self, prompts: list[str]) -> Tensor:
        return self._encoder.encode(prompts)

    @property
    def _text_encoder(self) -> str:
        return self.recipe.preparation.settings.text_encoder

    @cached_property
    def _encoder(self) -> DemoTextEncoder:
        model = self.recipe.preparation.model
        return DemoTextEncoder(model.text_len, model.text_dim)

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        data = self.recipe.preparation.data
        height, width = latent_size(data.size, data.size)
        return self.recipe.preparation.model.in_dim, latent_frames(data.num_pixel_frames), height, width


STAGES = {
    "autoencoder": Pipeline.autoencoder,
    "classifier": Pipeline.classifier,
    "latents": Pipeline.latents,
    "looks": Pipeline.looks,
    "motion": Pipeline.motion,
    "videos": Pipeline.videos,
    "whole": Pipeline.whole,
    "teacher": Pipeline.teacher,
    "ode-pairs": Pipeline.ode_pairs,
    "ode-init": Pipeline.ode_init,
    "stage1": Pipeline.stage1,
    "stage2": Pipeline.stage2,
    "export": Pipeline.export,
    "evaluate": Pipeline.evaluate,
}
SHARDED = ("ode-init", "stage1", "stage2")
"""stages for any number of processes"""


def run(recipe: MovingDigitsRecipe, folder: Path, *, device: torch.device, only: str | None = None) -> None:
    """All stages in order, or one of `STAGES`. Those that distil run on as many processes as torchrun starts.

    Raises:
        ValueError: an input is missing or does not fit, the folder holds the work of another recipe, or many processes
            are to run a stage that is for one.
        Collapse: training has gone wrong.
        OSError: a full disk, say; nothing is left half written.
    """
    with session(device) as own:
        pipeline = Pipeline(recipe, folder, own)
        for name, stage in STAGES.items():
            if name == only or (only is None and (name != "whole" or name in recipe.preparation.parts)):
                log.info("stage %s", name)
                with agreement():
                    if world_size() > 1 and name not in SHARDED:
                        raise ValueError(f"the stage {name} is for one process: run it without torchrun first")
                stage(pipeline)


def _made_with(report: Path) -> Any:
    """What a file of scores was made with, None where there is none."""
    return json.loads(report.read_text(encoding="utf-8")).get("made_with") if report.exists() else None
