"""What is applied to a model from outside, for the sake of memory. The model knows nothing of it."""

from __future__ import annotations

from functools import partial

from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from diag_core import WanDiT


def checkpoint_activations(model: WanDiT) -> WanDiT:
    """Keeps only the input of each transformer block for the backward pass, which computes the rest again: less memory,
    a third more time. Weights keep their names; the model is changed in place."""
    rerun = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # there is no dropout
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block, checkpoint_fn=rerun)
    return model
