"""Sample videos of a student at Wan's size, beside the teacher's on the same prompts.

The first prompts of the embeddings are sampled; with `--vae` alone, for latents cannot be judged.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from diag_core import CacheConfig, SeededNoise, WanDiT, generate
from diag_core.checkpoint import PRESETS, CheckpointSettings, LoadedCheckpoint
from diag_core.cli.models import load_vae

from ..distributed import agreement, from_main, is_main
from ..ema import EMA
from ..io import save_json
from ..metrics import pixel_health
from ..recipes.wan import VideoSize
from ..videos import save_videos
from .embeddings import Embeddings

_SEED = 30_000


class WanGallery:
    """Samples and judges the averaged weights of a student.

    Args:
        model: the student; its weights are put back after sampling.
        settings: how it is sampled.
        teacher: sampled as its own settings say, else as Wan's authors advise.
        vae: file of a Wan VAE or TAEHV; process 0 decodes, and has it on the device then alone.
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
        vae: Path,
        embeddings: Embeddings,
        video: VideoSize,
        count: int,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.model, self.ema, self.settings, self._teacher = model, ema, settings, teacher
        self.device, dtype = device, torch.float32 if device.type == "cpu" else torch.bfloat16
        with agreement():
            self.vae = load_vae(vae, dtype=dtype, device=torch.device("cpu"))
        self.embeddings, self.video, self.folder = embeddings, video, folder
        self.prompts = embeddings.prompts[:count]

    def teacher(self) -> dict[str, float]:
        """Health of the teacher's videos, sampled once."""
        path = self.folder / "teacher.json"
        if not from_main(path.exists()):
            pixels, health = self._look(self._teacher.model, self._teacher.settings or PRESETS["wan"])
            with agreement():
                if is_main():
                    save_videos(self.folder / "samples", "teacher", pixels)
                    save_json(path, health)
        health = from_main(json.loads(path.read_text(encoding="utf-8")) if is_main() else {})
        return {name: float(value) for name, value in health.items()}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [N,3,T,H,W] of the student, on process 0 (no videos on the others), and their health."""
        with self.ema.applied_to(self.model):
            return self._look(self.model, self.settings)

    @torch.no_grad()
    def _look(self, model: WanDiT, settings: CheckpointSettings) -> tuple[Tensor, dict[str, float]]:
        """One video at a time: the longest forward of a bidirectional model is that of a whole video."""
        latents = torch.cat([self._one(model, settings, i, prompt) for i, prompt in enumerate(self.prompts)])
        pixels, health = torch.empty(0), dict[str, float]()
        with agreement():
            if is_main():
                pixels = self._decoded(latents)
                health = pixel_health(pixels)
        return pixels, from_main(health)

    def _decoded(self, latents: Tensor) -> Tensor:
        parameter = next(self.vae.to(self.device).parameters())
        pixels = torch.cat([self.vae.decode(video.to(parameter)).float().cpu() for video in latents.split(1)])
        self.vae.to("cpu")
        return pixels

    def _one(self, model: WanDiT, settings: CheckpointSettings, i: int, prompt: str) -> Tensor:
        _, frames, height, width = self.video.shape(model.config.in_dim)
        guided = settings.cfg != 1
        with torch.autocast(model.device.type, torch.bfloat16):
            return generate(
                model,
                self.embeddings.encode([prompt]).to(model.device),
                settings.diagonal_schedule(),
                noise=SeededNoise(_SEED + i),
                num_latent_frames=frames,
                height=height,
                width=width,
                cache=settings.cache() if settings.causal else CacheConfig(None, 0),
                policy=settings.policy(),
                chunk_frames=settings.chunk_frames if settings.causal else frames,
                step=settings.step,
                cfg=settings.cfg,
                negative=self.embeddings.encode([self.embeddings.negative]).to(model.device) if guided else None,
            )
