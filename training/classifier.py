"""Reads the digit of a frame: a small CNN on the colour-free foreground, cropped around its centre.

A frame's ground is its median colour (a digit covers far less than half of it), its foreground the distance from the
ground. The network sees only that, scaled and centred, so it reads shapes whatever the colours and positions.

Shapes: N frames [N,3,H,W] in -1..1; foreground [N,H,W] in 0..1; crops [N,1,32,32]; logits [N,10].
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

from .data.moving_digits import MovingDigitsConfig, draw_clips, render
from .io import load_tensors, save_tensors

log = logging.getLogger(__name__)

CROP = 32
# A digit's colour lies at least 1.3 from any ground; half of that tells a faint digit from an empty frame's noise.
_LEAST_CONTRAST = 0.65
# The smallest digit, a thin 1, has at least as many pixels that its colour fills completely.
_FULL_PIXELS = 40


class DigitClassifier(nn.Module):
    """Frames [N,3,H,W] in -1..1 -> logits [N,10]."""

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
        logits: torch.Tensor = self.head(self.features(centred_crops(foreground(frames)[0])))
        return logits


def foreground(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each pixel is digit, [N,H,W] in 0..1, and the ground's colour [N,3] in -1..1."""
    flat = frames.float().flatten(2)
    # Every fifth pixel is plenty for a median, and 5 runs through all rows and columns of any even size.
    ground_N3 = flat[:, :, ::5].median(dim=-1).values
    distance = (flat - ground_N3[:, :, None]).norm(dim=1)
    full = distance.topk(_FULL_PIXELS, dim=-1).values.mean(-1, keepdim=True).clamp_min(_LEAST_CONTRAST)
    # Below a fifth of the contrast is noise of the ground and ringing around the strokes.
    cover = ((distance / full - 0.2) / 0.7).clamp(0, 1)
    return cover.unflatten(-1, frames.shape[-2:]), ground_N3


def centroids(cover_NHW: torch.Tensor) -> torch.Tensor:
    """Centres of mass [N,2] as (x, y) in pixels; the middle of the frame where there is no foreground."""
    _, height, width = cover_NHW.shape
    # A grain of weight everywhere: it defines the empty frame and moves no other by more than a hundredth of a pixel.
    weight = cover_NHW + 1e-6
    mass = weight.sum((1, 2))
    x = (weight.sum(1) * (torch.arange(width) + 0.5)).sum(-1) / mass
    y = (weight.sum(2) * (torch.arange(height) + 0.5)).sum(-1) / mass
    return torch.stack([x, y], dim=-1)


def centred_crops(cover_NHW: torch.Tensor) -> torch.Tensor:
    """Squares [N,1,32,32] around the centres of mass, to the whole pixel; zeros beyond the frame."""
    n = cover_NHW.shape[0]
    half = CROP // 2
    padded = F.pad(cover_NHW, (half, half, half, half))
    corner = centroids(cover_NHW).round().long()
    span = torch.arange(CROP)
    rows = (corner[:, 1, None] + span)[:, :, None]
    columns = (corner[:, 0, None] + span)[:, None, :]
    return padded[torch.arange(n)[:, None, None], rows, columns][:, None]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The recipe of the classifier in demo/."""

    seed: int = 0
    steps: int = 500
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    data: MovingDigitsConfig = field(default_factory=lambda: MovingDigitsConfig(rotation=12.0, scale=0.12))


def train_classifier(config: ClassifierConfig) -> DigitClassifier:
    """Train on single frames of training scans, blurred and noised at random so that decoded frames read as well."""
    torch.manual_seed(config.seed)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    for step in range(config.steps):
        indices = range(step * config.batch, (step + 1) * config.batch)
        frames, labels = frame_batch(indices, "train", config.seed, config.data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
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
    """Single frames [N,3,H,W] at random moments, and their digits [N]."""
    clips = draw_clips(indices, split=split, seed=seed, config=data, held_out=None)
    moments = np.random.default_rng([seed, indices.start]).integers(0, data.num_pixel_frames, size=(len(clips), 1))
    return render(clips, data, frames=moments)[:, :, 0], torch.tensor([clip.scene.digit for clip in clips])


@torch.inference_mode()
def measure_accuracy(
    model: DigitClassifier,
    *,
    split: str = "test",
    videos: int = 400,
    seed: int = 7,
    reconstruct: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Shares read right of rendered videos of a split: single "frames", and whole "videos" by their frames' mean
    logits.

    `reconstruct` maps pixels to what an autoencoder makes of them, to measure reading through it."""
    data = MovingDigitsConfig()
    frames_right, videos_right = [], []
    for start in range(0, videos, 10):
        clips = draw_clips(range(start, min(videos, start + 10)), split=split, seed=seed, config=data, held_out=None)
        pixels = render(clips, data)
        if reconstruct is not None:
            pixels = reconstruct(pixels)
        shown = pixels[:, :, ::4].transpose(1, 2)
        log_p_BTN = model(shown.flatten(0, 1)).log_softmax(-1).unflatten(0, shown.shape[:2])
        labels = torch.tensor([clip.scene.digit for clip in clips])
        frames_right.append((log_p_BTN.argmax(-1) == labels[:, None]).float().mean(1))
        videos_right.append((log_p_BTN.mean(1).argmax(-1) == labels).float())
    return {"frames": float(torch.cat(frames_right).mean()), "videos": float(torch.cat(videos_right).mean())}


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
