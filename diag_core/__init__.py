"""Diagonal distillation: the causal Wan 2.1 DiT, its cache, its step schedule and its sampler. No ComfyUI in here."""

from .config import CacheConfig, ContextPolicy, WanConfig
from .wan_dit import WanDiT

__all__ = ["CacheConfig", "ContextPolicy", "WanConfig", "WanDiT"]
