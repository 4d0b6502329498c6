"""Streams of a tiny model, and what PyTorch holds meanwhile; for the tests of long, killed and abandoned streams."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from goldens_reader import small_model
from torch import Tensor

from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, WanDiT, stream_chunks
from diag_core.chunk_loop import Chunk
from diag_core.pipeline import VideoPipeline
from diag_core.vae import TinyVAE, TinyVAEConfig

CACHE = CacheConfig(window_frames=12, sink_frames=3, positions="relative")
CYCLE = 4  # chunks until the step counts come again
SCHEDULE = DiagonalSchedule.parse("(3 2 1*2)*")


class NoiseFrom:
    """The noise of a video that begins at latent frame 0, for one that begins at another."""

    def __init__(self, first_frame: int, seed: int = 5) -> None:
        self.first_frame, self.seeded = first_frame, SeededNoise(seed)

    def initial(self, start_frame: int, shape: Sequence[int]) -> Tensor:
        return self.seeded.initial(start_frame - self.first_frame, shape)

    def renoise(self, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
        return self.seeded.renoise(chunk, step, shape)

    def context(self, chunk: int, shape: Sequence[int]) -> Tensor:
        return self.seeded.context(chunk, shape)


def tiny_dit() -> WanDiT:
    return small_model(dim=48, num_heads=2).requires_grad_(False)


def tiny_vae() -> TinyVAE:
    """Pictures of four times the latents' size."""
    torch.manual_seed(1)
    space = (True, False, False)
    config = TinyVAEConfig(
        patch_size=2, encoder_width=8, decoder_widths=(8, 8, 8, 8), encoder_space=space, decoder_space=space
    )
    return TinyVAE(config).requires_grad_(False)


def prompt(seed: int = 0) -> Tensor:
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))


def stream(model: WanDiT, chunks: int | None, **changes: Any) -> Iterator[Chunk]:
    """`chunks` chunks of latents [1,16,3,8,8], or chunks without end."""
    options: dict[str, Any] = dict(
        noise=SeededNoise(5),
        num_latent_frames=None if chunks is None else 3 * chunks,
        height=8,
        width=8,
        cache=CACHE,
        context=prompt(),
    )
    return stream_chunks(model, schedule=SCHEDULE, **(options | changes))


def pictures(model: WanDiT, vae: TinyVAE, chunks: int | None) -> VideoPipeline:
    """Pictures uint8 [T,32,32,3]."""
    return VideoPipeline(lambda on_forward: stream(model, chunks, on_forward=on_forward), vae)


def tensors_held() -> tuple[int, int]:
    """All tensors that Python holds, and the bytes behind them."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    return len(tensors), sum(storages.values())
