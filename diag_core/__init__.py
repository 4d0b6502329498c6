"""Diagonal distillation: the causal Wan 2.1 DiT, its cache, its step schedule and its sampler. No ComfyUI in here."""

from .config import CacheConfig, ContextPolicy, SwitchPolicy, WanConfig
from .diagonal_schedule import PRESETS, DiagonalSchedule, ScheduleError
from .noise import NoiseSource, SeededNoise
from .sampler import Chunk, Forward, Take, generate, stream_chunks
from .state import SamplerState
from .timeline import Timeline
from .wan_dit import WanDiT

__all__ = [
    "PRESETS",
    "CacheConfig",
    "Chunk",
    "ContextPolicy",
    "DiagonalSchedule",
    "Forward",
    "NoiseSource",
    "SamplerState",
    "ScheduleError",
    "SeededNoise",
    "SwitchPolicy",
    "Take",
    "Timeline",
    "WanConfig",
    "WanDiT",
    "generate",
    "stream_chunks",
]
