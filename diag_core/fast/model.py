"""The fast path as a model that the sampler runs like any other.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns, L text tokens.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Attention, Uncaptured, attention_backend
from ..config import WanConfig
from ..kv_cache import KVCache
from ..layers import pad_text
from ..rope import rotation
from .attention_choice import AttentionChoice, fastest_attention
from .compilation import CompiledBlock, compiler_missing
from .forward import ChunkInputs, Memory, forward, prompt_keys
from .fp8 import Fp8Block, fp8_missing
from .graphs import SharedPool, StorageGraphs
from .kernel_choice import operations
from .lending import Lender, Loan
from .weights import FastBlock, FusedBlock, weights_at

log = logging.getLogger(__name__)


def why_not(model: Any, dtype: torch.dtype | None = None) -> str | None:
    """Why the fast path would not give this model's own results, or None where it would.

    Args:
        model: of Wan's shape, ours or a stock one.
        dtype: what the plain path computes in; that of the weights when left out.
    """
    for name, module in model.named_modules():
        if is_changed(module):
            return f"{name or 'the model'} is patched or hooked"
    # The patch embedding may be kept in another precision (ComfyUI's is).
    weights = [p for name, p in model.named_parameters() if not name.startswith("patch_embedding.")]
    if len({(p.dtype, p.device) for p in weights}) != 1:
        return "its weights are of several types or on several devices"
    found, device = weights[0].dtype, weights[0].device
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weights are {found}"
    if dtype not in (None, found):
        return f"its weights are {found}, and it computes in {dtype}"
    if model.patch_embedding.weight.device != device:
        return "its weights are on several devices"
    for name, module in model.named_modules():
        if name.endswith((".q", ".k", ".v")) and type(module).__name__ != "Linear":
            return f"{name} is a {type(module).__name__}"
        if name.endswith((".norm_q", ".norm_k")) and getattr(module, "weight", None) is None:
            return f"{name} is a {type(module).__name__} without weights"
    return None


def is_changed(module: nn.Module) -> bool:
    """Whether a module runs anything but its class's forward."""
    own = vars(module).get("forward")
    # Patching tools that put a forward back leave it on the module itself.
    put_back = getattr(own, "__func__", None) is type(module).forward and getattr(own, "__self__", None) is module
    return bool(module._forward_hooks or module._forward_pre_hooks) or not (own is None or put_back)


class FastDiT:
    """A DiT on fused weights, in its own memory; with CUDA graphs on a GPU.

    The model stays usable: its parameters become views of the fused ones. Caches that come without storage are lent
    some, which the next video of the same sizes uses again (`release` frees it).

    Args:
        model: a `WanDiT`, or a stock model of that shape.
        config: sizes, where the model has no `config`.
        dtype: what to compute in; that of the weights when left out.
        text_len: length to pad prompts to; that of the config when left out.
        attention: a back end, or "auto": the fastest one here, by a short measurement when the first chunk is sampled.
        kernels: "triton", "torch", or "auto": Triton on a GPU where it runs.
        graphs: capture CUDA graphs; never on a CPU, nor of attention that is `Uncaptured`.
        fp8: linear layers in FP8, which changes the results a little; weights must not be changed in place then.
        compiled: feed-forward layers by torch.compile.

    Raises:
        ValueError: `why_not` says why; Triton, FP8 or a compiler asked for and not there; an attention back end that is
            not.
    """

    def __init__(
        self,
        model: Any,
        *,
        config: WanConfig | None = None,
        dtype: torch.dtype | None = None,
        text_len: int | None = None,
        attention: Attention | str = "auto",
        kernels: str = "auto",
        graphs: bool = True,
        fp8: bool = False,
        compiled: bool = False,
    ) -> None:
        reason = why_not(model, dtype)
        if reason is not None:
            raise ValueError(f"the fast path cannot run this model: {reason}")
        lacking = fp8_missing(model) if fp8 else None
        if lacking is not None:
            raise ValueError(f"this model cannot run in FP8 here: {lacking}")
        lacking = compiler_missing(model) if compiled else None
        if lacking is not None:
            raise ValueError(f"this model cannot be compiled here: {lacking}")
        if fp8 and compiled:
            raise ValueError("the feed-forward layers are either in FP8 or compiled: choose one")
        self.model, self.fp8, self.compiled = model, fp8, compiled
        self.config: WanConfig = model.config if config is None else config
        self.dtype: torch.dtype = dtype or model.patch_embedding.weight.dtype
        self.text_len = self.config.text_len if text_len is None else text_len
        self.ops = operations(kernels, self.device)
        self.choice: AttentionChoice | None = None
        """how the attention back end was chosen, once it was measured"""
        self._attention = attention_backend(attention) if isinstance(attention, str) else attention
        self.graphs = graphs and self.device.type == "cuda"
        if self.graphs and isinstance(self._attention, Uncaptured):
            log.warning("the fast path goes without CUDA graphs: %s", self._attention.why)
            self.graphs = False
        self._measures = attention == "auto" and self.device.type == "cuda"
        self._lender, self._shared = Lender(), SharedPool()
        self._blocks: list[FastBlock] = []
        self._weights_at: tuple[int, ...] = ()
        self._turned: tuple[tuple[int, ...], Tensor] | None = None
        self.take_weights()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.patch_embedding.weight.device
        return device

    @property
    def idle_bytes(self) -> int:
        """Storage that waits for the next video."""
        return self._lender.idle_bytes

    @property
    def captured(self) -> bool:
        """Whether CUDA graphs are in use; False before the first one, and where a capture has failed."""
        return self._shared.capturing.handle is not None and self._shared.failure is None

    def release(self) -> None:
        """Frees what waits for the next video: storage, and all graphs with their memory."""
        self._lender.release()
        self._shared = SharedPool()

    def lend(self, cache: Any) -> None:
        """Gives a cache without storage some of this model's; so once a video, it also looks for new weights."""
        if isinstance(cache, KVCache) and not cache.k:
            self.take_weights()
            self._lender.lend(cache)

    def takes(self, timestep: Tensor, cache: Any, start_frame: int) -> bool:
        """Whether a forward goes the fast path: whole videos without a cache, noise levels a latent frame, snapshots,
        and a sink that must also be kept unturned go the plain one."""
        return isinstance(cache, KVCache) and timestep.dim() == 1 and not _keeps_sink(cache, start_frame)

    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
    ) -> Tensor:
        """As `WanDiT.forward`, which also runs what this path does not take."""
        # What is made here (storage, prompts, graphs) outlives the call, which ComfyUI makes in inference mode.
        # Kernels and captures go to the current device, whatever device their tensors are on.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(latents):
            self.lend(cache)
            if not self.takes(timestep, cache, start_frame):
                flow: Tensor = self.model(latents, timestep, context, cache=cache, start_frame=start_frame)
                return flow
            return self._forward(latents, timestep, context, cache, start_frame)

    def _forward(self, latents: Tensor, timestep: Tensor, context: Tensor, cache: KVCache, start_frame: int) -> Tensor:
        cache.place(start_frame, latents.shape[2])
        if cache.text is None:
            cache.text = self.model.text_embedding(pad_text(context, self.text_len).to(self.dtype))
        if cache.cross[0] is None:
            cache.cross = list(prompt_keys(self.model, cache.text))
        slots, attended = cache.placement()
        turn = self._turn(cache, start_frame, latents.shape[2])
        if self._measures:
            self._measure(latents, turn.shape[0], cache)
        inputs = ChunkInputs(latents, timestep, turn, slots)
        graphs = self._graphs_of(cache)
        if graphs is not None:
            cache.cross = list(graphs.settle(cache.cross))  # type: ignore[arg-type]
        memory = Memory(cache.k, cache.v, cache.cross)  # type: ignore[arg-type]
        return (graphs.run if graphs else self._run)(inputs, memory, attended)

    def _run(self, inputs: ChunkInputs, memory: Memory, attended: int) -> Tensor:
        return forward(self.model, self._blocks, self.ops, inputs, memory, attended, self._attention, self.dtype)

    def _graphs_of(self, cache: KVCache) -> StorageGraphs | None:
        """None for a cache with storage of its own (a video gone on with): its graphs would be used by no other."""
        loan: Loan | None = self._lender.of(cache) if self.graphs else None
        if loan is None:
            return None
        if loan.graphs is None:
            loan.graphs = StorageGraphs(self._run, self._shared)
        return loan.graphs

    def take_weights(self) -> None:
        """Fuses them, unless they are fused already and lie where they lay; graphs of others are of no use. To be
        called when something may have moved them while a video is made; between videos it is done by itself."""
        if self._weights_at and self._weights_at == weights_at(self.model):
            return
        self._lender.forget_graphs()
        self._shared = SharedPool()  # its memory went with the last of them
        blocks = self.model.blocks
        fused = CompiledBlock if self.compiled else FusedBlock
        self._blocks = [Fp8Block(b, self.ops) for b in blocks] if self.fp8 else [fused(b) for b in blocks]
        self._weights_at = weights_at(self.model)

    def _measure(self, latents: Tensor, queries: int, cache: KVCache) -> None:
        self.choice = fastest_attention(
            queries=queries, keys=cache.capacity * cache.tokens, num_heads=cache.num_heads, head_dim=cache.head_dim,
            batch=latents.shape[0], dtype=self.dtype, device=self.device,
        )  # fmt: skip
        self._attention, self._measures = self.choice.attend, False

    def _turn(self, cache: KVCache, start_frame: int, frames: int) -> Tensor:
        """Cosines and sines of a chunk's tokens; the steps of a chunk share them."""
        key = (start_frame, frames, cache.rows, cache.columns)
        if self._turned is None or self._turned[0] != key:
            positions = tuple(range(start_frame, start_frame + frames))
            turn = rotation(positions, cache.rows, cache.columns, self.config.head_dim, self.device)
            self._turned = key, torch.view_as_real(turn).squeeze(1)
        return self._turned[1]


def _keeps_sink(cache: KVCache, start_frame: int) -> bool:
    first = start_frame - (cache.origin if cache.held else start_frame)
    return cache.moves_sink and first < cache.sink
