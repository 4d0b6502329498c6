"""Sample videos of moving digits while a student is trained, beside the teacher's on the same prompts."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from diag_core import WanDiT
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint
from diag_core.vae import TinyVAE

from ..classifier import DigitClassifier
from ..data.paths import MovingDigitsConfig
from ..data.prompts import held_out_scenes, to_prompt
from ..distributed import agreement, from_main, is_main
from ..ema import EMA
from ..evaluate import score_videos
from ..io import save_json
from ..metrics import pixel_health
from ..videos import save_videos
from .scoring import sampler_of

_SEED = 30_000
"""of prompts and noise: neither the evaluation's nor the teacher's own samples"""
_SCORES = ("digit", "direction", "colour", "amplitude")


class DigitsGallery:
    """Samples and judges the averaged weights of a student.

    Args:
        model: the student; its weights are put back after sampling.
        settings: how it is sampled.
        teacher: the frozen teacher, sampled as its own settings say.
        count: prompts.
        folder: of the stage; the teacher's videos and health are kept there.
    """

    def __init__(
        self,
        model: WanDiT,
        ema: EMA,
        settings: CheckpointSettings,
        *,
        teacher: LoadedCheckpoint,
        vae: TinyVAE,
        classifier: DigitClassifier,
        data: MovingDigitsConfig,
        count: int,
        folder: Path,
    ) -> None:
        self.model, self.ema, self.settings, self._teacher = model, ema, settings, teacher
        self.vae, self.classifier, self.data, self.folder = vae, classifier, data, folder
        self.scenes = held_out_scenes(count, seed=_SEED)

    def teacher(self) -> dict[str, float]:
        """Health of the teacher's videos, sampled once."""
        path = self.folder / "teacher.json"
        if not from_main(path.exists()):
            assert self._teacher.settings is not None
            pixels, health = self._look(self._teacher, self._teacher.settings)
            with agreement():
                if is_main():
                    save_videos(self.folder / "samples", "teacher", pixels, fps=self.data.fps)
                    save_json(path, health)
        health = from_main(json.loads(path.read_text(encoding="utf-8")) if is_main() else {})
        return {name: float(value) for name, value in health.items()}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [N,3,T,H,W] of the student, and their health."""
        with self.ema.applied_to(self.model):
            return self._look(LoadedCheckpoint(self.model, self.model.config, self.settings), self.settings)

    def _look(self, checkpoint: LoadedCheckpoint, settings: CheckpointSettings) -> tuple[Tensor, dict[str, float]]:
        sample = sampler_of(checkpoint, settings, self.vae, self.data)
        pixels = sample([to_prompt(scene) for scene in self.scenes], _SEED)
        scores = score_videos(pixels, self.scenes, self.classifier, chunk_frames=settings.chunk_frames)
        read = {name: float(scores[name].nanmean()) for name in _SCORES}
        # All prompts may say that digits circle, which leaves no direction to read; that is no sign of collapse.
        return pixels, pixel_health(pixels) | {name: value for name, value in read.items() if value == value}
