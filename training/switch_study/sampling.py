"""Samples prompt switches in several variants that share their noise and the chunks before the switch.

Shapes: P pairs, T pixel frames; pixels [P,3,T,H,W] in -1..1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diag_core import DiagonalSchedule, SeededNoise, SwitchPolicy, Timeline, stream_chunks
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint
from diag_core.chunk_loop import Chunk, Forward
from diag_core.demo_text import DemoTextEncoder
from diag_core.geometry import latent_size
from diag_core.schedule_text import MAX_STEPS
from diag_core.vae import TinyVAE

from ..data.paths import MovingDigitsConfig
from ..precision import sampling_autocast

CONTROL = "no switch"
EXTRA_CHUNKS = 2
"""chunks from the switch on that extra steps are given to"""


@dataclass(frozen=True)
class Variant:
    """One way to take a switch."""

    recache: str
    """of SwitchPolicy"""
    extra_steps: bool = False
    """twice the steps for the first `EXTRA_CHUNKS` chunks"""

    @property
    def name(self) -> str:
        return f"recache {self.recache}" + (", extra steps" if self.extra_steps else "")


VARIANTS = tuple(
    Variant(recache, extra) for recache, extra in itertools.product(("off", "chunks", "joint"), (False, True))
)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is sampled."""

    pairs: int = 100
    seed: int = 0
    chunks: int = 7
    """of the whole video"""
    switch_chunk: int = 3
    """0-based: the first chunk of the new prompt"""
    batch: int = 20
    """pairs sampled at once; the result does not depend on it but for rounding"""
    motions: tuple[str, ...] = ("stops", "bounces")
    """those that the checkpoint was trained on"""
    variants: tuple[Variant, ...] = VARIANTS
    data: MovingDigitsConfig = field(default_factory=MovingDigitsConfig)

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.batch < 1:
            raise ValueError(f"pairs and batch must be 1 or more, got {self.pairs} and {self.batch}")
        if not 1 <= self.switch_chunk < self.chunks:
            raise ValueError(
                f"the switch must come after the first chunk and before the end: 1 to {self.chunks - 1} of "
                f"{self.chunks} chunks, got {self.switch_chunk}"
            )


def with_extra_steps(schedule: DiagonalSchedule, switch_chunk: int) -> DiagonalSchedule:
    """The schedule with twice the steps for the first chunks from `switch_chunk` on, as uniform or distilled lists."""
    counts = [min(MAX_STEPS, 2 * schedule.steps(switch_chunk + i)) for i in range(EXTRA_CHUNKS)]
    lists = DiagonalSchedule.parse(" ".join(map(str, counts)), schedule.shift).chunks
    return dataclasses.replace(schedule, after_switch=lists)


@dataclass(frozen=True)
class Sampled:
    """Videos of some pairs."""

    pixels: dict[str, Tensor]
    """variant (and control) to [P,3,T,H,W]"""
    forwards: dict[str, int]
    """of the model from the switch on; with guidance, both branches count as one"""


class SwitchSampler:
    """Samples pairs in every variant, the chunks before the switch once."""

    def __init__(self, checkpoint: LoadedCheckpoint, settings: CheckpointSettings, vae: TinyVAE, config: StudyConfig):
        if not settings.causal:
            raise ValueError("a bidirectional checkpoint makes the whole video at once: prompts cannot switch in it")
        self.model, self.settings, self.vae, self.config = checkpoint.model, settings, vae, config
        self.encoder = DemoTextEncoder(checkpoint.config.text_len, checkpoint.config.text_dim)
        # Whatever the checkpoint does after a switch of its own accord would blur what is compared.
        self.schedule = dataclasses.replace(settings.diagonal_schedule(), after_switch=())

    def schedule_of(self, variant: Variant) -> DiagonalSchedule:
        """The checkpoint's, with or without extra steps after the switch."""
        return with_extra_steps(self.schedule, self.config.switch_chunk) if variant.extra_steps else self.schedule

    def sample(self, prompts: Sequence[tuple[str, str]], seeds: Sequence[int]) -> Sampled:
        """(old, new) prompts -> videos; pair p of a batch is drawn from `seeds[p]` alone."""
        old, new = (self.encoder.encode(list(texts)).to(self.model.device) for texts in zip(*prompts, strict=True))
        noise, config = SeededNoise(list(seeds)), self.config
        start = config.switch_chunk * self.settings.chunk_frames
        before = self._run(Timeline([(0, old)]), self.schedule, noise, config.switch_chunk)[0]
        pixels, forwards = {}, {}
        runs: list[tuple[str, Timeline, DiagonalSchedule, str]] = [
            (CONTROL, Timeline([(0, old)]), self.schedule, "off")
        ]
        for variant in config.variants:
            runs.append((variant.name, Timeline([(0, old), (start, new)]), self.schedule_of(variant), variant.recache))
        for name, timeline, schedule, recache in runs:
            chunks, forwards[name] = self._run(timeline, schedule, noise, config.chunks, recache, before)
            latents = torch.cat([chunk.latents for chunk in chunks], dim=2)
            with torch.no_grad():
                pixels[name] = self.vae.decode(latents.to(next(self.vae.parameters()).device)).float().cpu()
        return Sampled(pixels, forwards)

    def _run(
        self,
        timeline: Timeline,
        schedule: DiagonalSchedule,
        noise: SeededNoise,
        chunks: int,
        recache: str = "off",
        before: Sequence[Chunk] = (),
    ) -> tuple[list[Chunk], int]:
        """A video of `chunks` chunks that begins with those of `before`, and the forwards that the others took."""
        settings, model, forwards = self.settings, self.model, 0
        negative = self.encoder.encode([settings.negative_prompt]).to(model.device)
        height, width = latent_size(self.config.data.size, self.config.data.size)
        sampling = False

        def count(forward: Forward) -> None:
            nonlocal forwards, sampling
            # A recomputation of earlier chunks comes before the first step, but belongs to the switch.
            sampling = sampling or forward.kind != "commit" or forward.chunk >= len(before)
            forwards += sampling

        with sampling_autocast(model):
            video = stream_chunks(
                model,
                timeline,
                schedule,
                noise=noise,
                num_latent_frames=chunks * settings.chunk_frames,
                height=height,
                width=width,
                cache=settings.cache(),
                policy=settings.policy(),
                chunk_frames=settings.chunk_frames,
                step=settings.step,
                cfg=settings.cfg,
                negative=negative.expand(timeline.batch_size, -1, -1).contiguous(),
                switch=SwitchPolicy(recache=recache),
                replay=[chunk.take for chunk in before if chunk.take is not None],
                on_forward=count,
            )
            return list(video), forwards
