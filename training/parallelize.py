"""What is applied to a model from outside, for the sake of memory and of many processes. The model knows nothing of it.

What FSDP2 does beneath a rollout, which runs a model many times with and without gradient before one backward pass:

- A root that is left to its defaults keeps its weights gathered after a forward, until a backward pass. After forwards
  without gradient none comes, and whatever changes the shards meanwhile (an optimizer step for another forward's
  gradients, a loaded state, averaged weights that are lent) is not seen by the next forward. So the root is told to let
  go of them after every forward, as blocks do.
- Inputs are not cast to the precision of weights: timesteps reach 1000 and the angles of positions thousands, of which
  bf16 keeps 8 bits. The model casts what it multiplies with weights.
- Shards are read where they lie; `parameter.data = other` is not noticed. Weights are changed in place.
- Each forward with gradient has a reduction of its own in the backward pass: gradients of a block are summed over
  processes once for every chunk.
- Every forward leaves a note for the backward pass's prefetching, which a frozen model never clears: some 50 bytes a
  block. That is nothing beside a training, and worth knowing in a loop of millions.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from diag_core import WanDiT

from .distributed import world_size

_WRAPPER = "_checkpoint_wrapped_module."


def parallelize(
    model: WanDiT, *, precision: torch.dtype, checkpointing: bool = False, device: torch.device | None = None
) -> WanDiT:
    """The model as a training of any number of processes holds it; it is changed in place, and left as it is where it
    is sharded already.

    Args:
        precision: of its forwards.
        checkpointing: see `checkpoint_activations`.
        device: where a model that has no storage yet will be; None: where this one is.
    """
    if isinstance(model, FSDPModule):
        return model
    if checkpointing:
        checkpoint_activations(model)
    return shard(model, precision, device or model.device) if world_size() > 1 else model


def checkpoint_activations(model: WanDiT) -> WanDiT:
    """Keeps only the input of each transformer block for the backward pass, which computes the rest again: less memory,
    a third more time. Weights keep their names; the model is changed in place."""
    rerun = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # there is no dropout
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block, checkpoint_fn=rerun)
    return model


def shard(model: WanDiT, precision: torch.dtype, device: torch.device) -> WanDiT:
    """Splits the weights over all processes (FSDP2); each block is gathered while it runs. Changed in place; a model
    on the meta device stays there, to be given storage (`to_empty`) for its shards alone.

    Trained and frozen models alike. Weights are gathered in `precision`, gradients are averaged over processes in
    float32, and the shards keep their dtype. In bf16 what runs between blocks is bf16 too, as in sampling, whereas
    one process alone runs float32 weights under autocast and has float32 there.

    Every process must run the same forwards in the same order, of the model itself and not of its blocks.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=precision if precision.itemsize == 2 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of a model, by the names that the state dict has, whatever wraps the blocks."""
    return {name.replace(_WRAPPER, ""): p for name, p in model.named_parameters() if p.requires_grad}
