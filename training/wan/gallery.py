"""Sample videos of a student at Wan's size, beside the teacher's on the same prompts.

Made with `--vae` alone, for latents cannot be judged.

Legend: N videos, C latent channels, F latent frames, H and W latent rows and columns, T pixel frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diag_core import SeededNoise, WanDiT
from diag_core.checkpoint import CheckpointSettings
from diag_core.cli.models import load_vae
from diag_core.geometry import DEFAULT_FPS

from ..distributed import agreement, from_main, is_main, rank, to_main, world_size
from ..ema import EMA
from ..io import save_json
from ..metrics import pixel_health
from ..recipes.wan import VideoSize
from ..sampling import sample_latents
from ..videos import save_videos
from .embeddings import Embeddings

_SEED = 30_000


def sample_prompts(
    model: WanDiT, settings: CheckpointSettings, prompts: Sequence[str], embeddings: Embeddings, video: VideoSize
) -> Tensor:
    """Videos of prompts that are embedded, sampled as `settings` say: [N,C,F,H,W] on the CPU of process 0, nothing on
    the others. The processes share the prompts, one at a time: the longest forward of a bidirectional model is that of
    a whole video."""
    made, shape = list[Tensor](), video.shape(model.config.in_dim)
    for first in range(0, len(prompts), world_size()):
        # None can run a sharded model without the others: those beyond the last prompt repeat it.
        i = min(first + rank(), len(prompts) - 1)
        context, negative = (embeddings.encode([text]).to(model.device) for text in (prompts[i], embeddings.negative))
        latents = sample_latents(model, settings, context, negative, SeededNoise(_SEED + i), shape)
        made += to_main(latents.cpu())
    return torch.cat(made[: len(prompts)]) if is_main() else torch.empty(0)


class WanGallery:
    """Samples and judges the averaged weights of a student.

    Args:
        model: the student; its weights are put back after sampling.
        settings: how it is sampled.
        prompts: what is sampled; embedded, all of them.
        teacher: makes the teacher's latents [N,C,F,H,W] for them, on process 0; called once by all together.
        vae: file of a Wan VAE or TAEHV; process 0 decodes, and has it on the device then alone.
        folder: of the stage; the teacher's videos and health are kept there.
    """

    compared_with, fps = "the teacher's", DEFAULT_FPS

    def __init__(
        self,
        model: WanDiT,
        ema: EMA,
        settings: CheckpointSettings,
        *,
        prompts: list[str],
        teacher: Callable[[], Tensor],
        vae: Path,
        embeddings: Embeddings,
        video: VideoSize,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.model, self.ema, self.settings, self.prompts, self._teacher = model, ema, settings, prompts, teacher
        self.device, dtype = device, torch.float32 if device.type == "cpu" else torch.bfloat16
        with agreement():
            self.vae = load_vae(vae, dtype=dtype, device=torch.device("cpu"))
        self.embeddings, self.video, self.folder = embeddings, video, folder

    def reference(self) -> dict[str, float]:
        """Health of the teacher's videos, sampled once."""
        path = self.folder / "teacher.json"
        if not from_main(path.exists()):
            pixels, health = self._judged(self._teacher())
            with agreement():
                if is_main():
                    save_videos(self.folder / "samples", "teacher", pixels, fps=self.fps)
                    save_json(path, health)
        health = from_main(json.loads(path.read_text(encoding="utf-8")) if is_main() else {})
        return {name: float(value) for name, value in health.items()}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [N,3,T,H,W] of the student, on process 0 (no videos on the others), and their health."""
        with self.ema.applied_to(self.model):
            latents = sample_prompts(self.model, self.settings, self.prompts, self.embeddings, self.video)
        return self._judged(latents)

    @torch.no_grad()
    def _judged(self, latents: Tensor) -> tuple[Tensor, dict[str, float]]:
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
