"""The models of distillation, and where they come from.

generator   the causal student, trained
real_score  the bidirectional teacher, frozen: what the distribution should be
fake_score  the critic, begun as the teacher, trained: what the student's distribution is
regression  the causal student as it was, frozen, sampled as its file says; None where no loss compares with it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import LoadedCheckpoint, load_dit


@dataclass(frozen=True)
class Roles:
    generator: WanDiT
    real_score: WanDiT
    fake_score: WanDiT
    regression: LoadedCheckpoint | None


def need(path: Path, made_by: str) -> Path:
    """The path of an input; ValueError that names the stage which makes it, where it is not there."""
    if not path.exists():
        raise ValueError(f"{path} is missing. Run the stage {made_by} first, or put its result there")
    return path


def load_role(path: Path, role: str, *, like: WanConfig | None, made_by: str, device: torch.device) -> LoadedCheckpoint:
    """A frozen float32 model.

    Args:
        role: what it is needed as, for messages.
        like: the sizes it must have; None takes any.
        made_by: the stage that writes such a file, for messages.

    Raises:
        ValueError: no such file, a file that cannot be read, or a model of another size.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: it is the {role}. Run the stage {made_by} first, or put its result there")
    loaded = load_dit(path, dtype=torch.float32, device=device)
    if like is not None and loaded.config != like:
        name, own, other = next(
            (name, value, like.to_dict()[name])
            for name, value in loaded.config.to_dict().items()
            if value != like.to_dict()[name]
        )
        raise ValueError(
            f"{path} is of another size: the {role} must have {name} {other}, it has {own}. Use the recipe it was made "
            "with, or another folder"
        )
    return loaded


def trained(model: WanDiT) -> WanDiT:
    """The same model, with gradients; one with a LoRA in it has them there alone."""
    adapted = any(".lora_" in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not adapted or ".lora_" in name)
    return model.train()


def digest(path: Path) -> str:
    """SHA-256 of a file: tells a run that goes on whether it still stands on the same inputs."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(paths: Sequence[Path]) -> str:
    """The same of files that are one input."""
    return hashlib.sha256("".join(map(digest, paths)).encode()).hexdigest()


def digest_of_values(values: Any) -> str:
    """The same of what JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
