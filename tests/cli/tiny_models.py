"""Random models of a few layers, Ctrl-C at a given moment, and reading videos back."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from diag_core import SeededNoise, WanConfig, WanDiT
from diag_core.mp4_writer import Mp4Writer
from diag_core.settings import CheckpointSettings
from diag_core.vae import TinyVAE, TinyVAEConfig

SETTINGS = CheckpointSettings(
    schedule="21",
    shift=3.0,
    kv_noise=25.0,
    reuse_last_step=False,
    step="euler",
    cfg=2.0,
    text_encoder="demo-clauses",
    title="tiny",
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def decode(path: Path) -> Tensor:
    """uint8 [T,H,W,3]"""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


def press_at(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Ctrl-C while the chunk at latent frame 3 x `chunk` is being denoised."""
    draw = SeededNoise.initial

    def initial(self: SeededNoise, start_frame: int, shape: tuple[int, ...]) -> Tensor:
        if start_frame == 3 * chunk:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)  # sampling has a thread of its own, and signals are for the main one
        return draw(self, start_frame, shape)

    monkeypatch.setattr(SeededNoise, "initial", initial)


def random_vae() -> TinyVAE:
    """Its pictures use the whole range, so that small differences of latents are seen.

    Its file says nothing of it, and is taken for a published one, whose encoder looks ahead.
    """
    torch.manual_seed(1)
    space = (True, False, False)
    config = TinyVAEConfig(
        patch_size=4, encoder_width=8, decoder_widths=(8, 8, 8, 8), encoder_space=space, decoder_space=space,
        encoder_lookahead=True,
    )  # fmt: skip
    vae = TinyVAE(config).requires_grad_(False)
    vae.decoder[-1].weight.mul_(30)
    vae.decoder[-1].bias.fill_(0.5)
    return vae


def written(path: Path, pixels: Tensor) -> Tensor:
    """uint8 [T,H,W,3]: what a player sees of pixels [1,3,T,H,W] that went through a file."""
    with Mp4Writer(path, 16, pixels.shape[4], pixels.shape[3]) as writer:
        writer.write(pixels)
    return decode(path)


def random_dit(text_len: int = 16) -> WanDiT:
    """Weights large enough that prompt, past and noise all leave their mark on a video; the second layer's keys know
    the prompt."""
    torch.manual_seed(0)
    model = WanDiT(WanConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_len=text_len)).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2.0)
    return model
