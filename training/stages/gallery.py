"""Samples of moving digits while a model is trained, beside those that they are to be like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diag_core import WanDiT
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint
from diag_core.vae import TinyVAE

from ..classifier import DigitClassifier
from ..data.moving_digits import draw_clips, render
from ..data.paths import MovingDigitsConfig
from ..data.prompts import Scene, held_out_scenes, to_prompt
from ..distributed import agreement, from_main, is_main
from ..ema import EMA
from ..evaluate import score_frames, score_videos
from ..io import save_json
from ..metrics import pixel_health
from ..videos import save_videos
from .scoring import sampler_of

_SEED = 30_000
"""of prompts and noise: not the evaluation's"""
_SCORES = ("digit", "direction", "colour", "amplitude")


@dataclass(frozen=True)
class Reference:
    """Videos to compare with."""

    name: str
    """of their files"""
    whose: str
    """in the genitive"""
    videos: Callable[[list[Scene]], Tensor]
    """scenes -> pixels [N,3,T,H,W]"""


def teachers(teacher: LoadedCheckpoint, vae: TinyVAE, data: MovingDigitsConfig) -> Reference:
    """What the frozen teacher makes of the same prompts and noise, sampled as its own settings say."""

    def videos(scenes: list[Scene]) -> Tensor:
        assert teacher.settings is not None
        return sampler_of(teacher, teacher.settings, vae, data)([to_prompt(scene) for scene in scenes], _SEED)

    return Reference("teacher", "the teacher's", videos)


def rendered(data: MovingDigitsConfig) -> Reference:
    """Renders of the same scenes, from scans that are not trained on."""

    def videos(scenes: list[Scene]) -> Tensor:
        return render(draw_clips(range(len(scenes)), split="test", seed=_SEED, config=data, scenes=scenes), data)

    return Reference("real", "real videos'", videos)


class DigitsGallery:
    """Samples and judges the averaged weights of a model.

    Args:
        model: what they are sampled with; its weights are put back after sampling.
        settings: how it is sampled.
        data: sizes of the videos.
        count: prompts.
        folder: of the stage; the reference's videos and health are kept there.
    """

    def __init__(
        self,
        model: WanDiT,
        ema: EMA,
        settings: CheckpointSettings,
        *,
        reference: Reference,
        vae: TinyVAE,
        classifier: DigitClassifier,
        data: MovingDigitsConfig,
        count: int,
        folder: Path,
    ) -> None:
        self.model, self.ema, self.settings, self._reference = model, ema, settings, reference
        self.vae, self.classifier, self.data, self.folder = vae, classifier, data, folder
        self.scenes = held_out_scenes(count, seed=_SEED)
        self.compared_with, self.fps = reference.whose, data.fps

    def reference(self) -> dict[str, float]:
        """Health of the videos to compare with, made once."""
        path = self.folder / f"{self._reference.name}.json"
        if not from_main(path.exists()):
            pixels = self._reference.videos(self.scenes)
            health = self._health(pixels)
            with agreement():
                if is_main():
                    save_videos(self.folder / "samples", self._reference.name, pixels, fps=self.fps)
                    save_json(path, health)
        health = from_main(json.loads(path.read_text(encoding="utf-8")) if is_main() else {})
        return {name: float(value) for name, value in health.items()}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [N,3,T,H,W] of the averaged weights, and their health."""
        with self.ema.applied_to(self.model):
            checkpoint = LoadedCheckpoint(self.model, self.model.config, self.settings)
            sample = sampler_of(checkpoint, self.settings, self.vae, self.data)
            pixels = sample([to_prompt(scene) for scene in self.scenes], _SEED)
        return pixels, self._health(pixels)

    def _health(self, pixels: Tensor) -> dict[str, float]:
        if pixels.shape[2] == 1:
            scores = score_frames(pixels, self.scenes, self.classifier)
        else:
            scores = score_videos(pixels, self.scenes, self.classifier, chunk_frames=self.settings.chunk_frames)
        read = {name: float(scores[name].nanmean()) for name in _SCORES if name in scores}
        # All prompts may say that digits circle, which leaves no direction to read; that is no sign of collapse.
        return pixel_health(pixels) | {name: value for name, value in read.items() if value == value}
