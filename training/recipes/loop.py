"""Settings of the trainer's loop, which every stage has that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..checks import require, require_at_least
from ..metrics import HealthLimits
from ..precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """What is trained in iterations, logged, saved, sampled and judged."""

    ends_anywhere: ClassVar[bool] = True
    """whether iterations know nothing of `steps`, so that a run may end at another one than it was begun for; those
    whose learning rate falls towards the end do"""
    seed: int = 0
    """of all that is drawn"""
    steps: int
    """iterations"""
    save_every: int = 50
    """iterations between saved states: what a kill can cost"""
    log_every: int = 10
    """iterations between lines in the log"""
    sample_every: int = 100
    """iterations between samples of the averaged weights, which are judged; 0 makes none"""
    sample_prompts: int = 20
    """held-out prompts that are sampled then"""
    limits: HealthLimits = field(default_factory=HealthLimits)
    """where a run counts as collapsed and stops"""
    precision: str = "bf16"
    """of activations: bf16, fp32, or auto: bf16 where the device is quick in it; weights and averages are float32"""
    wandb: str = ""
    """a project of Weights & Biases, or entity/project, that the numbers go to as well; empty for none"""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "save_every", "log_every", "sample_prompts")
        require_at_least(self, 0, "seed", "sample_every")
        require(self.precision in PRECISIONS, "precision", f"must be one of {', '.join(PRECISIONS)}", self.precision)
