"""The fast path as a model that the sampler runs like any other.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns, L text tokens.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..attention import Attention, attention_backend
from ..config import WanConfig
from ..kv_cache import KVCache
from ..layers import pad_text
from ..rope import rotation
from . import torch_ops
from .forward import ChunkInputs, Memory, forward, prompt_keys
from .graphs import GraphPool
from .weights import FastBlock

log = logging.getLogger(__name__)


def why_not(model: Any) -> str | None:
    """Why the fast path would not give this model's own results, or None where it would.

    Args:
        model: of Wan's shape, ours or a stock one.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{name or 'the model'} is patched or hooked"
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    if len(kinds) != 1:
        return "its weights are of several types or on several devices"
    ((dtype, _),) = kinds
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weights are {dtype}"
    for name, module in model.named_modules():
        if name.endswith((".q", ".k", ".v")) and type(module).__name__ != "Linear":
            return f"{name} is a {type(module).__name__}"
    return None


class FastDiT:
    """A DiT on fused weights, in its own memory; with CUDA graphs on a GPU.

    The model stays usable: its parameters become views of the fused ones.

    Args:
        model: a `WanDiT`, or a stock model of that shape with `config`.
        attention: a back end; see `attention_choice.fastest_attention`.
        kernels: "triton", "torch", or "auto": Triton on a GPU that has it.
        graphs: capture CUDA graphs; never on a CPU.

    Raises:
        ValueError: `why_not` says why; Triton asked for and not there.
    """

    def __init__(
        self, model: Any, *, attention: Attention | None = None, kernels: str = "auto", graphs: bool = True
    ) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"the fast path cannot run this model: {reason}")
        self.model, self.attend = model, attention or attention_backend("auto")
        self.config: WanConfig = model.config
        self.ops = _operations(kernels, self.device)
        self.blocks = [FastBlock.of(block) for block in model.blocks]
        self.graphs = GraphPool(self._run) if graphs and self.device.type == "cuda" else None

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.patch_embedding.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.patch_embedding.weight.device
        return device

    @torch.no_grad()
    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
    ) -> Tensor:
        """As `WanDiT.forward`. Whole videos without a cache, noise levels a latent frame, snapshots, and a sink that
        must also be kept unturned go to the plain path."""
        frames = latents.shape[2]
        if not isinstance(cache, KVCache) or timestep.dim() != 1 or self._keeps_sink(cache, start_frame):
            flow: Tensor = self.model(latents, timestep, context, cache=cache, start_frame=start_frame)
            return flow
        cache.place(start_frame, frames)
        if cache.text is None:
            cache.text = self.model.text_embedding(pad_text(context, self.config.text_len).to(self.dtype))
        if cache.cross[0] is None:
            cache.cross = list(prompt_keys(self.model, cache.text))
        slots, attended = cache.placement()
        inputs = ChunkInputs(latents, timestep, self._turn(cache, start_frame, frames), slots)
        memory = Memory(cache.k, cache.v, cache.cross)  # type: ignore[arg-type]
        if self.graphs is None:
            return self._run(inputs, memory, attended)
        return self.graphs.run(inputs, memory, attended)

    def _run(self, inputs: ChunkInputs, memory: Memory, attended: int) -> Tensor:
        return forward(self.model, self.blocks, self.ops, inputs, memory, attended, self.attend)

    def _turn(self, cache: KVCache, start_frame: int, frames: int) -> Tensor:
        positions = tuple(range(start_frame, start_frame + frames))
        turn = rotation(positions, cache.rows, cache.columns, self.config.head_dim, self.device)
        return torch.view_as_real(turn).squeeze(1)

    def _keeps_sink(self, cache: KVCache, start_frame: int) -> bool:
        first = start_frame - (cache.origin if cache.held else start_frame)
        return cache.moves_sink and first < cache.sink


def _operations(name: str, device: torch.device) -> ModuleType:
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return torch_ops
    try:
        from . import kernels
    except ImportError as error:
        if name == "auto":
            log.warning("the fast path runs without its Triton kernels: %s", error)
            return torch_ops
        raise ValueError(f"kernels='triton' needs the package triton ({error})") from error
    return kernels


