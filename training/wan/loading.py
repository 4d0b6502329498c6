"""Models of a training from their files. Over several processes none of them ever holds more of a model than its share.

There a model is made without storage, split, and given storage for the shares alone; then each process reads every
tensor of the file in turn and keeps its own rows. A 14B teacher thus takes 28 GB of all GPUs together, and one
tensor's memory of a host for each of its processes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diag_core import WanDiT
from diag_core.attention import attention_backend
from diag_core.checkpoint import LoadedCheckpoint, load_dit, open_dit
from diag_core.state_dict import strip_wrappers

from ..distributed import agreement, local, rank, world_size
from ..parallelize import parallelize
from ..recipes.wan import LoraRecipe
from .lora import add_lora, base_name, fill_lora, initial_lora


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    precision: torch.dtype,
    checkpointing: bool = False,
    attention: str = "auto",
    merge: Path | None = None,
    lora: LoraRecipe | None = None,
    seed: int = 0,
) -> LoadedCheckpoint:
    """A frozen model, parallelized where there are several processes, all of which must come here.

    Args:
        dtype: of its weights; a LoRA that is put into it is float32.
        precision, checkpointing: see `parallelize`; one process alone leaves them to what trains the model.
        attention: name of its back end.
        merge: a LoRA file that is merged into the weights.
        lora: a LoRA to train, which is put into it.
        seed: of that LoRA's beginning.

    Raises:
        ValueError: the file cannot be used, on any process; or the back end is not installed.
    """
    if world_size() == 1:
        loaded = load_dit(path, dtype=dtype, device=device, lora=merge)
        loaded.model.attend = attention_backend(attention)
        if lora is not None:
            fill_lora(add_lora(loaded.model, lora), seed)
        return loaded
    with agreement():
        opened = open_dit(path, dtype=dtype, lora=merge)
    with torch.device("meta"):
        model = WanDiT(opened.config, attention=attention).to(dtype).requires_grad_(False).eval()
    if lora is not None:
        add_lora(model, lora).to("meta")
    parallelize(model, precision=precision, checkpointing=checkpointing, device=device)
    model.to_empty(device=device)
    with agreement(), torch.no_grad():
        for name, parameter in model.named_parameters():
            name = strip_wrappers(name)
            adds = ".lora_" in name
            whole = initial_lora(name, parameter.shape, seed) if adds else opened.read(base_name(name))
            local(parameter).copy_(_own_rows(whole))
    return LoadedCheckpoint(model, opened.config, opened.settings)


def _own_rows(whole: Tensor) -> Tensor:
    """What FSDP gives this process of a tensor: rows in blocks of equal size, of which the last ones may be empty."""
    blocks = whole.chunk(world_size())
    return blocks[rank()] if rank() < len(blocks) else whole[:0]
