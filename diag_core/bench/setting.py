"""What is measured: one frozen description, and the presets that users begin with. Sizes are in pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..attention import NAMES
from ..config import CacheConfig, ContextPolicy, WanConfig
from ..denoising import STEPS
from ..diagonal_schedule import DiagonalSchedule
from ..fast import KERNELS, MODES
from ..geometry import chunk_count, latent_size, pixel_frames, tokens_per_frame
from ..noise_schedule import sigma_from_schedule_timestep
from ..vae import TinyVAEConfig
from .work import Work, forwards_of_chunk, video_work

COMMITS = ("last-step", "noised", "clean")
DECODERS = ("taehv", "wan", "none")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class BenchSetting:
    """Raises ValueError for what cannot be sampled, before anything is built."""

    preset: str
    """Name of the model's sizes in reports."""
    model: WanConfig
    width: int = 832
    height: int = 480
    latent_frames: int = 21
    chunk_frames: int = 3
    schedule: DiagonalSchedule = field(default_factory=lambda: DiagonalSchedule.parse("4322222"))
    commit: str = "last-step"
    """What later chunks see of a chunk: its "last-step", or a forward more on it "clean" or "noised"."""
    kv_noise: float = 100.0
    """Level of a "noised" commit as a schedule timestep (0..1000, before the shift); not used by the others."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    step: str = "renoise"
    """What follows an estimate: one of `STEPS`."""
    cfg: float = 1.0
    """Guidance; anything but 1 runs every forward twice."""
    decoder: str = "taehv"
    """One of `DECODERS`."""
    tiny_vae: TinyVAEConfig = field(default_factory=TinyVAEConfig)
    """Sizes of the "taehv" decoder."""
    wan_vae_dim: int = 96
    """Base width of the "wan" decoder."""
    decode_frames: int = 3
    """Latent frames decoded at once, where a chunk has more."""
    batch: int = 1
    """Videos sampled at once."""
    dtype: str = "bfloat16"
    device: str | None = None
    """A device of PyTorch; None takes the GPU where there is one."""
    attention: str = "auto"
    fast: str = "auto"
    """Whether the fast path is taken: one of `diag_core.fast.MODES`."""
    kernels: str = "auto"
    """Its fused operations: one of `diag_core.fast.KERNELS`."""
    graphs: bool = True
    """Whether it captures CUDA graphs, on a GPU."""
    fp8: bool = False
    """Its linear layers in FP8."""
    compiled: bool = False
    """Its feed-forward layers by torch.compile."""

    def __post_init__(self) -> None:
        latent_size(self.height, self.width)
        for name in ("latent_frames", "chunk_frames", "batch", "decode_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        chosen = {
            "commit": COMMITS,
            "decoder": DECODERS,
            "dtype": DTYPES,
            "attention": NAMES,
            "fast": MODES,
            "kernels": KERNELS,
            "step": STEPS,
        }
        for name, choices in chosen.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.kv_noise <= 1000:
            raise ValueError(f"KV noise is a schedule timestep from 0 to 1000, got {self.kv_noise}")
        window = self.cache.window_frames
        # The cache would refuse it too, but only at the second chunk.
        if window is not None and window < self.cache.sink_frames + self.chunk_frames:
            raise ValueError(
                f"a window of {window} latent frames must hold the sink ({self.cache.sink_frames}) and a chunk "
                f"({self.chunk_frames}): make it {self.cache.sink_frames + self.chunk_frames} or more"
            )

    @property
    def policy(self) -> ContextPolicy:
        if self.commit == "last-step":
            return ContextPolicy.last_step()
        if self.commit == "clean":
            return ContextPolicy.clean()
        return ContextPolicy.noised(sigma_from_schedule_timestep(self.kv_noise, self.schedule.shift))

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent rows and columns."""
        return latent_size(self.height, self.width)

    @property
    def pixel_frames(self) -> int:
        return pixel_frames(self.latent_frames)

    @property
    def chunks(self) -> int:
        return chunk_count(self.latent_frames, self.chunk_frames)

    @property
    def branches(self) -> int:
        """Prompts that every forward runs for: two with guidance."""
        return 1 if self.cfg == 1.0 else 2

    @property
    def forwards(self) -> int:
        """Forwards of the whole video, commits included, each with guidance counted twice."""
        return self.branches * sum(forwards_of_chunk(self.schedule, self.policy, chunk) for chunk in range(self.chunks))

    @property
    def work(self) -> Work:
        """Of the whole video, over the batch and both prompts of a guided one."""
        return self.branches * video_work(
            self.model,
            self.schedule,
            self.policy,
            self.cache,
            latent_frames=self.latent_frames,
            tokens_per_frame=tokens_per_frame(*self.latent_size),
            chunk_frames=self.chunk_frames,
            batch=self.batch,
        )


_FOUR_STEPS = DiagonalSchedule.parse("1000,750,500,250")

PRESETS: dict[str, BenchSetting] = {
    "wan-1.3b": BenchSetting(preset="wan-1.3b", model=WanConfig.wan_1_3b()),
    "wan-14b": BenchSetting(preset="wan-14b", model=WanConfig.wan_14b()),
    "batch-4": BenchSetting(preset="batch-4", model=WanConfig.wan_1_3b(), batch=4),
    # A minute at 16 frames a second, to the next whole chunk.
    "minute": BenchSetting(
        preset="minute", model=WanConfig.wan_1_3b(), latent_frames=243, cache=CacheConfig(12, 3, "relative")
    ),
    # What others do for the same 81 frames.
    "self-forcing": BenchSetting(
        preset="self-forcing",
        model=WanConfig.wan_1_3b(),
        schedule=_FOUR_STEPS,
        commit="clean",
        cache=CacheConfig(None, 0),
    ),
    "longlive": BenchSetting(preset="longlive", model=WanConfig.wan_1_3b(), schedule=_FOUR_STEPS, commit="clean"),
    # The undistilled model: all latent frames at once. The keys it keeps, for nobody, cost memory and hardly any time.
    "wan-2.1": BenchSetting(
        preset="wan-2.1",
        model=WanConfig.wan_1_3b(),
        chunk_frames=21,
        schedule=DiagonalSchedule.parse("50"),
        step="euler",
        cfg=5.0,
        cache=CacheConfig(None, 0),
    ),
    # Wan's proportions at a size where one CPU core takes a fraction of a second for a chunk.
    "small": BenchSetting(
        preset="small",
        model=WanConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, text_dim=256, text_len=64),
        width=128,
        height=128,
        tiny_vae=TinyVAEConfig(encoder_width=16, decoder_widths=(64, 32, 16, 16)),
        wan_vae_dim=8,
        dtype="float32",
        device="cpu",
    ),
}
