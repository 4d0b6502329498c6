"""Trains the autoencoder of moving digits: a TinyVAE on rendered clips and single frames.

Loss: L1 and squared error of the reconstruction, decoded from latents with noise added (so that neighbouring latents
decode alike), plus a pull of every latent channel to mean 0 and standard deviation 1 (so that none dies and none
leaves the range that the decoder's soft clamp passes). At the end the exact statistics are folded into the encoder's
last and the decoder's first convolution: files hold an autoencoder whose latents are normalised.

Shapes: pixels [B,3,T,H,W] in -1..1, latents [B,16,F,H/8,W/8].
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from diag_core.vae.detect import CONFIG, KIND, TINY_VAE, vae_from_state_dict
from diag_core.vae.tiny import TinyVAE, TinyVAEConfig

from .. import trainer
from ..checks import require, require_above_zero, require_at_least
from ..data.moving_digits import draw_clips, render
from ..data.paths import MovingDigitsConfig
from ..data.prompts import sample_scene
from ..io import load_tensors, save_tensors
from ..metrics import pixel_health
from ..optimize import Losses, Optimizer
from ..precision import autocast
from ..recipes.loop import LoopRecipe
from .begin import begin

log = logging.getLogger(__name__)

_DATA = "data"  # of a file's metadata: the videos it was trained on


def toy_vae_config() -> TinyVAEConfig:
    """1.4M parameters: pixels folded by 4, one halving of the size, 4x in time."""
    return TinyVAEConfig(
        patch_size=4,
        encoder_width=32,
        encoder_space=(True, False, False),
        encoder_time=(True, True, False),
        decoder_widths=(64, 48, 48, 48),
        decoder_space=(False, True, False),
        decoder_time=(False, True, True),
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(LoopRecipe):
    """The recipe; the defaults are those of the embedded checkpoint."""

    ends_anywhere: ClassVar[bool] = False
    vae: TinyVAEConfig = dataclasses.field(default_factory=toy_vae_config)
    data: MovingDigitsConfig = dataclasses.field(default_factory=MovingDigitsConfig)
    seed: int = 0
    """of weights, clips and noise"""
    steps: int = 2000
    pairs: float = 0.5
    """share of clips with two digits"""
    lengths: tuple[int, ...] = (9, 1, 17, 9)
    """pixel frames of a step's clips, in turn"""
    pixel_frames: int = 208
    """pixel frames a step, so the batch is this over the length"""
    learning_rate: float = 2e-3
    """the highest; it falls as a cosine, to 1% of itself"""
    warmup_steps: int = 100
    """over which it rises from 0"""
    latent_noise: float = 0.2
    """standard deviation; latents are about unit"""
    moment_weight: float = 0.02
    """of the term that keeps latents at mean 0 and deviation 1"""
    square_weight: float = 2.0
    """weight of the squared error beside L1, both on pixels in -1..1"""
    clip: float = 1.0
    """largest gradient norm"""
    save_every: int = 250
    """steps between saved states: what a kill can cost"""
    log_every: int = 50
    """steps between lines of the log"""
    sample_every: int = 250
    """steps between samples, held-out videos each beside what the autoencoder makes of it, which are judged; 0 makes
    none"""
    sample_prompts: int = 4
    """held-out videos that are judged then; the first few are shown"""
    precision: str = "auto"
    """of activations: bf16, fp32, or auto: bf16 where the device is quick in it; weights are float32"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "warmup_steps", "pixel_frames")
        require_at_least(self, 0, "latent_noise", "moment_weight", "square_weight")
        require_above_zero(self, "learning_rate", "clip")
        require(0 <= self.pairs <= 1, "pairs", "must be from 0 to 1", self.pairs)
        fit = bool(self.lengths) and all(n % 4 == 1 and 1 <= n <= self.data.num_pixel_frames for n in self.lengths)
        longest = self.data.num_pixel_frames
        require(fit, "lengths", f"must be 1, 5, 9, .. and at most the {longest} of data.num_pixel_frames", self.lengths)


class Autoencode:
    """The task of the trainer."""

    def __init__(self, config: AutoencoderConfig, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.model = _channels_last(TinyVAE(config.vae)).to(device)
        self.optimizer = Optimizer(
            self.model,
            learning_rate=lambda done: config.learning_rate * _schedule(done, config),
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            clip=config.clip,
        )

    def update(self, step: int) -> dict[str, Tensor]:
        pixels = training_batch(step, self.config).to(self.device)
        logged, norm = self.optimizer.step([_losses(self.model, pixels, step, self.config)])
        return logged | {"gradient_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class ReconstructionGallery:
    """Held-out videos, each beside what an autoencoder that is trained makes of it."""

    compared_with = "the input videos'"

    def __init__(self, model: TinyVAE, config: AutoencoderConfig, device: torch.device | str) -> None:
        self.model, self.device, self.fps = model, device, config.data.fps
        clips = draw_clips(range(config.sample_prompts), split="test", seed=1, config=config.data, held_out=None)
        self.videos = render(clips, config.data)

    def reference(self) -> dict[str, float]:
        """Health of the videos."""
        return pixel_health(self.videos)

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        """Pixels [2N,3,T,H,W], videos and reconstructions in turn, and the health of the latter."""
        made = reconstruct(self.model, self.videos.to(self.device)).cpu()
        health = pixel_health(made) | {"psnr": psnr(F.mse_loss(made, self.videos))}
        return torch.stack([self.videos, made], dim=1).flatten(0, 1), health


def train(config: AutoencoderConfig, folder: str | Path, *, device: torch.device | str = "cpu") -> Path:
    """Train, or go on where `folder` left off; returns the path of the finished `vae.safetensors` in it.

    Raises:
        ValueError: the folder holds the state of another recipe.
        Collapse, Stopped, OSError: as `trainer.train`.
    """
    folder = Path(folder)
    begin(folder, config, {})
    task = Autoencode(config, device)
    trainer.train("autoencoder", task, config, folder, gallery=ReconstructionGallery(task.model, config, device))
    return finish(task.model.cpu(), config, folder)


def finish(model: TinyVAE, config: AutoencoderConfig, folder: Path) -> Path:
    """Normalise the latents, measure the held-out PSNR as the file will have it (bf16 weights), write
    `vae.safetensors`."""
    model.eval()
    mean_C, std_C = latent_statistics(model, config)
    fold_statistics(model, mean_C, std_C)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    quality = held_out_psnr(model, config.data)
    log.info("autoencoder: held-out PSNR %.2f dB", quality)
    metadata = {
        KIND: TINY_VAE,
        CONFIG: config.vae.to_json(),
        "psnr_db": round(quality, 2),
        "steps": config.steps,
        "seed": config.seed,
        _DATA: dataclasses.asdict(config.data),
    }
    return save_tensors(folder / "vae.safetensors", weights, metadata)


def load_autoencoder(path: str | Path) -> TinyVAE:
    """A TinyVAE from a file of this stage, float32, in evaluation mode.

    Raises ValueError for a file without this stage's metadata."""
    weights, metadata = load_tensors(path)
    if metadata.get(KIND) != TINY_VAE:
        raise ValueError(f"{path} was not written by the autoencoder stage: its metadata has no tiny_vae configuration")
    model = vae_from_state_dict({name: value.float() for name, value in weights.items()}, metadata=metadata)
    assert isinstance(model, TinyVAE)
    return _channels_last(model).eval()


def _channels_last(model: TinyVAE) -> TinyVAE:
    """The order of memory in which a CPU's convolutions are quick."""
    moved: TinyVAE = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def data_of(path: str | Path) -> MovingDigitsConfig:
    """The videos that an autoencoder was trained on, and so what is sampled through it; a file that does not say is of
    the 64x64 ones."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    return MovingDigitsConfig(**json.loads(metadata.get(_DATA, "{}")))


def training_batch(step: int, config: AutoencoderConfig) -> Tensor:
    """Pixels of a step: training scans, all combinations of attributes (the split of combinations is the video
    model's), pairs of digits more often than the video model sees them, since they are harder to draw."""
    length = config.lengths[step % len(config.lengths)]
    batch = max(1, config.pixel_frames // length)
    indices = range(step * config.pixel_frames, step * config.pixel_frames + batch)
    rng = np.random.default_rng([config.seed, step])
    scenes = [sample_scene(rng, held_out=None, pairs=config.pairs) for _ in indices]
    clips = draw_clips(indices, split="train", seed=config.seed, config=config.data, scenes=scenes)
    first = rng.integers(0, config.data.num_pixel_frames - length + 1, size=(batch, 1))
    return render(clips, config.data, frames=first + np.arange(length))


def psnr(squared_error: Tensor | float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over pixels in -1..1."""
    return 10 * math.log10(4 / max(float(squared_error), 1e-12))


def held_out_psnr(model: TinyVAE, data: MovingDigitsConfig, *, videos: int = 40, seed: int = 1) -> float:
    """PSNR in dB of whole reconstructed videos of test scans, over the pooled squared error."""
    errors = []
    for indices in _batches(videos, 8):
        pixels = render(draw_clips(indices, split="test", seed=seed, config=data, held_out=None), data)
        errors.append(F.mse_loss(reconstruct(model, pixels), pixels))
    return psnr(torch.stack(errors).mean())


@torch.inference_mode()
def reconstruct(model: TinyVAE, pixels: Tensor) -> Tensor:
    """Decode(encode(pixels)), clamped to -1..1, float32."""
    with autocast("cpu"):
        return model.decode(model.encode(pixels)).float().clamp(-1, 1)


@torch.inference_mode()
def latent_statistics(model: TinyVAE, config: AutoencoderConfig, *, videos: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel [C] over training videos."""
    total = torch.zeros(2, config.vae.latent_channels, dtype=torch.float64)
    batches = list(_batches(videos, 8))
    for indices in batches:
        clips = draw_clips(indices, split="train", seed=config.seed + 1, config=config.data, held_out=None)
        with autocast("cpu"):
            latents = model.encode(render(clips, config.data)).double()
        total += torch.stack([latents.mean((0, 2, 3, 4)), latents.square().mean((0, 2, 3, 4))])
    mean_C, square_C = total / len(batches)
    return mean_C.float(), (square_C - mean_C**2).sqrt().float()


@torch.no_grad()
def fold_statistics(model: TinyVAE, mean_C: Tensor, std_C: Tensor) -> None:
    """Change the encoder's last and the decoder's first convolution so that latents become (z - mean) / std.

    The decoder's soft clamp c(z) stands between the latent and that convolution, and a convolution pads with zeros
    after it. So the decoder takes c(z / std - mean / std) where it had c(z): close to affine over the range that the
    moment loss keeps latents in, not exact."""
    last = model.encoder[-1]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    last.weight.div_(std_C[:, None, None, None])
    last.bias.copy_((last.bias - mean_C) / std_C)
    first = next(block for block in model.decoder if isinstance(block, torch.nn.Conv2d))
    assert first.bias is not None
    first.bias.add_((first.weight * mean_C[None, :, None, None]).sum((1, 2, 3)))
    first.weight.mul_(std_C[None, :, None, None])


def _losses(model: TinyVAE, pixels: Tensor, step: int, config: AutoencoderConfig) -> Losses:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    with autocast(pixels.device, config.precision):
        latents = model.encode(pixels)
        noise = config.latent_noise * torch.randn(latents.shape, generator=generator).to(pixels.device)
        decoded = model.decode(latents + noise)
    error = decoded.float() - pixels
    squared = error.square().mean()
    latents = latents.float()
    mean_C = latents.mean((0, 2, 3, 4))
    std_C = latents.std((0, 2, 3, 4))
    moments = mean_C.square().mean() + (std_C - 1).square().mean()
    loss = error.abs().mean() + config.square_weight * squared + config.moment_weight * moments
    return loss, {"loss": loss.detach(), "noisy_psnr": 10 * (4 / squared.detach()).log10()}


def _schedule(step: int, config: AutoencoderConfig) -> float:
    """Linear warm-up, then a cosine down to 1%."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(count, start + size))
