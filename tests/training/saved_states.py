"""Parts of a run's newest saved state."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from diag_core.state_dict import strip_wrappers
from training import checkpoint


def saved_weights(folder: Path, role: str) -> dict[str, Tensor]:
    """Original name -> weight of a model ("critic", "generator") in `folder`, a stage's."""
    states = folder / "checkpoints"
    path, prefix = checkpoint.newest(states), f"task.{role}."
    assert path is not None
    found = FileSystemReader(path).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(prefix): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if name.startswith(prefix)
    }
    assert weights and checkpoint.load(states, {"task": {role: weights}})
    return {strip_wrappers(name): tensor for name, tensor in weights.items()}
