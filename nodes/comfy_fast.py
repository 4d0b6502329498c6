"""The fast path over ComfyUI's own Wan model: when it is taken, and how long it is kept.

It lives on the stock model, beside the weights that it fuses: the next run uses its storage and CUDA graphs again,
changed LoRAs are noticed by where the weights lie, and unloading the model releases it.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.patcher_extension
import torch

from ..diag_core import WanConfig
from ..diag_core.attention import Attention, Uncaptured
from ..diag_core.fast import FastDiT, why_not
from .comfy_model import comfy_attention, is_stock

log = logging.getLogger(__name__)

DEVICES = {"cuda"}
"""Types of devices that it is taken on."""

_KEY = "diagdistill_fast"
_LEFT_OUT = "diagdistill_plain"
_ON_DETACH = comfy.patcher_extension.CallbacksMP.ON_DETACH
_OPTIONS = ("patches", "patches_replace", "optimized_attention_override")


def leave_out(model: Any) -> Any:
    """A clone of the MODEL that never takes the fast path."""
    model = model.clone()
    model.set_attachments(_LEFT_OUT, True)
    return model


def fast_path(patcher: Any, config: WanConfig, dtype: torch.dtype) -> FastDiT | None:
    """The fast path over a MODEL that is loaded, or None where the plain one runs; the log says why.

    Args:
        dtype: what ComfyUI computes in.
    """
    stock = patcher.model.diffusion_model
    if patcher.load_device.type not in DEVICES:
        return None
    if patcher.get_attachment(_LEFT_OUT):
        release(stock)
        return None
    reason = _foreign(stock) or why_not(stock, dtype) or _elsewhere(stock, patcher.load_device)
    if reason is not None:
        log.warning("Diagonal Sampler: plain path, as %s", reason)
        release(stock)
        return None
    fast: FastDiT | None = getattr(stock, _KEY, None)
    if fast is None or fast.dtype != dtype or fast.device != patcher.load_device:
        release(stock)
        # Prompts are taken as long as they come, as ComfyUI's own forward takes them.
        fast = FastDiT(stock, config=config, dtype=dtype, text_len=1, attention=_attention(patcher.load_device))
        setattr(stock, _KEY, fast)
        # The two hold each other; ComfyUI relies on a MODEL's memory being free when its last reference goes.
        weakref.finalize(patcher.model, release, stock).atexit = False
    else:
        fast.take_weights()
    _release_on_unload(patcher)
    return fast


def options_of_others(transformer_options: dict[str, Any]) -> str | None:
    """What another pack asks of a forward that the fast path would not do."""
    return next((name for name in _OPTIONS if transformer_options.get(name)), None)


def idle_bytes(patcher: Any) -> int:
    """Of the memory that a run needs, what it finds allocated."""
    fast: FastDiT | None = getattr(patcher.model.diffusion_model, _KEY, None)
    return 0 if fast is None else fast.idle_bytes


def release(stock: Any) -> None:
    """Frees storage and graphs. The weights are the model's own and stay."""
    fast: FastDiT | None = getattr(stock, _KEY, None)
    if fast is not None:
        fast.release()
        delattr(stock, _KEY)


def _foreign(stock: Any) -> str | None:
    """What is not ComfyUI's own code, or not as it was loaded."""
    wan = comfy.ldm.wan.model
    for name, module in stock.named_modules():
        if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
            return f"{name} is offloaded or patched while it runs (too little memory for the whole model?)"
    for number, block in enumerate(stock.blocks):
        if not (
            is_stock(block, wan.WanAttentionBlock)
            and is_stock(block.self_attn, wan.WanSelfAttention)
            and is_stock(block.cross_attn, wan.WanT2VCrossAttention)
        ):
            return f"another pack has changed block {number}"
    return None


def _elsewhere(stock: Any, device: torch.device) -> str | None:
    """Where the weights are that ComfyUI lends to its device layer by layer, as with --novram."""
    found = stock.patch_embedding.weight.device
    return None if found == device else f"its weights are on {found} and not on {device} (is ComfyUI saving VRAM?)"


def _attention(device: torch.device) -> Attention | str:
    """The fastest exact back end by measurement, unless ComfyUI was started with a choice of its own."""
    attention = comfy.ldm.modules.attention
    # xFormers is taken wherever it is installed, which is no choice of anyone's.
    unchosen = (attention.attention_pytorch, attention.attention_xformers)
    if attention.optimized_attention in unchosen or device.type == "cpu":
        return "auto"
    why = "ComfyUI's attention is not PyTorch's, and a capture may not see its kernels (as with SageAttention)"
    return Uncaptured(comfy_attention(device, {}), why)


def _release_on_unload(patcher: Any) -> None:
    # The run's own MODEL goes when the run ends; ComfyUI then unloads by one it was cloned from.
    while patcher is not None:
        if not patcher.get_callbacks(_ON_DETACH, _KEY):
            patcher.add_callback_with_key(_ON_DETACH, _KEY, _detached)
        patcher = patcher.parent


def _detached(patcher: Any, unpatch_all: bool) -> None:
    if unpatch_all:  # otherwise the same weights go on under a clone
        release(patcher.model.diffusion_model)
