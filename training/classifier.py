"""Reads a digit: a small CNN on how much of each pixel the digit covers, cropped around its centre.

A frame's ground is its median colour (digits cover far less than half of it), its foreground the distance from the
ground (`scores/foreground.py`). The network sees only that, scaled and centred, so it reads shapes whatever the colours
and positions. The covers of two digits of one frame come from `scores/tracking.py`.

Shapes: N frames [N,3,H,W] in -1..1; covers [N,H,W] in 0..1; crops [N,1,32,32]; logits [N,10].
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .checks import require_above_zero, require_at_least
from .data.moving_digits import draw_clips, render
from .data.paths import MovingDigitsConfig
from .data.prompts import sample_scene
from .io import load_tensors, save_tensors
from .precision import autocast
from .scores.foreground import CROP, centred_crops, foreground
from .scores.tracking import track

log = logging.getLogger(__name__)


class DigitClassifier(nn.Module):
    """Frames [N,3,H,W] in -1..1 with one digit -> logits [N,10]; `read` does the same from covers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64 * (CROP // 8) ** 2, 10))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.read(foreground(frames)[0])

    def read(self, cover_NHW: torch.Tensor) -> torch.Tensor:
        """Logits [N,10]."""
        logits: torch.Tensor = self.head(self.embed(cover_NHW))
        return logits

    def embed(self, cover_NHW: torch.Tensor) -> torch.Tensor:
        """Features [N,1024] that the digit is read from: 64 channels of 4x4, channel first."""
        features: torch.Tensor = self.features(centred_crops(cover_NHW))
        return features


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The recipe of the classifier in demo/."""

    seed: int = 0
    steps: int = 500
    batch: int = 128
    """frames a step"""
    learning_rate: float = 2e-3
    """the highest, of one cycle"""
    weight_decay: float = 1e-2
    data: MovingDigitsConfig = field(
        default_factory=lambda: MovingDigitsConfig(digit_size=25.0, rotation=12.0, scale=0.25)
    )
    """digits of a range of sizes that holds those of videos with one digit and of those with two"""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "batch")
        require_at_least(self, 0, "seed", "weight_decay")
        require_above_zero(self, "learning_rate")


def train_classifier(config: ClassifierConfig) -> DigitClassifier:
    """Train on single frames of training scans, blurred and noised at random so that decoded frames read as well."""
    torch.manual_seed(config.seed)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    for step in range(config.steps):
        indices = range(step * config.batch, (step + 1) * config.batch)
        frames, labels = frame_batch(indices, "train", config.seed, config.data)
        with autocast("cpu"):
            logits = model(_degraded(frames, step))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log.info("classifier: step %d of %d, loss %.3f", step + 1, config.steps, loss.item())
    return model.eval()


def frame_batch(indices: range, split: str, seed: int, data: MovingDigitsConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Single frames [N,3,H,W] with one digit each at random moments, and the digits [N]."""
    rng = np.random.default_rng([seed, indices.start])
    scenes = [sample_scene(rng, held_out=None, pairs=0) for _ in indices]
    clips = draw_clips(indices, split=split, seed=seed, config=data, scenes=scenes)
    moments = rng.integers(0, data.num_pixel_frames, size=(len(clips), 1))
    return render(clips, data, frames=moments)[:, :, 0], torch.tensor([scene.movers[0].digit for scene in scenes])


@torch.inference_mode()
def measure_accuracy(
    model: DigitClassifier,
    *,
    split: str = "test",
    videos: int = 400,
    seed: int = 7,
    reconstruct: Callable[[torch.Tensor], torch.Tensor] | None = None,
    data: MovingDigitsConfig | None = None,
) -> dict[str, float]:
    """Shares of digits read right in rendered videos of a split: in single "frames", and in whole "videos" by their
    frames' mean log probabilities; of the latter also those of videos with one digit ("alone") and with two ("pairs").

    `reconstruct` maps pixels to what an autoencoder makes of them, to measure reading through it."""
    data = data or MovingDigitsConfig()
    frames_right, videos_right, paired = [], [], []
    for start in range(0, videos, 10):
        clips = draw_clips(range(start, min(videos, start + 10)), split=split, seed=seed, config=data, held_out=None)
        pixels = render(clips, data)
        if reconstruct is not None:
            pixels = reconstruct(pixels)
        seen = track(pixels[:, :, ::4], [clip.scene for clip in clips])
        log_p_MTN = log_probabilities(model, seen.cover)
        digits = torch.tensor([mover.digit for mover in seen.movers])
        frames_right.append((log_p_MTN.argmax(-1) == digits[:, None]).float().mean(1))
        videos_right.append((log_p_MTN.mean(1).argmax(-1) == digits).float())
        paired.append(torch.bincount(seen.video)[seen.video] == 2)
    right, pairs = torch.cat(videos_right), torch.cat(paired)
    return {
        "frames": float(torch.cat(frames_right).mean()),
        "videos": float(right.mean()),
        "alone": float(right[~pairs].mean()),
        "pairs": float(right[pairs].mean()),
    }


@torch.inference_mode()
def log_probabilities(model: DigitClassifier, cover_MTHW: torch.Tensor) -> torch.Tensor:
    """Log probabilities [M,T,10] of what the covers of every pixel frame show."""
    logits = torch.cat([model.read(part) for part in cover_MTHW.flatten(0, 1).split(512)])
    return logits.log_softmax(-1).unflatten(0, cover_MTHW.shape[:2])


def save_classifier(path: str | Path, model: DigitClassifier, metadata: dict[str, object]) -> Path:
    """bfloat16 weights; metadata carries the measured accuracies."""
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    return save_tensors(path, weights, {"kind": "digit_classifier", **metadata})


def load_classifier(path: str | Path) -> DigitClassifier:
    """The classifier of a file, float32, in evaluation mode. ValueError for another kind of file."""
    weights, metadata = load_tensors(path)
    if metadata.get("kind") != "digit_classifier":
        raise ValueError(f"{path} holds no digit classifier: its metadata says kind={metadata.get('kind')!r}")
    model = DigitClassifier()
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def _degraded(frames: torch.Tensor, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    strength = torch.rand((), generator=generator)
    if step % 2:
        blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        frames = torch.lerp(frames, blurred, strength)
    return frames + 0.15 * strength * torch.randn(frames.shape, generator=generator)
