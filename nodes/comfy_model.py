"""The cached causal forward over ComfyUI's own Wan model, with other packs' patches in place.

Legend: B batch, C latent channels, f latent frames of a chunk, N tokens, L text tokens, D model width, H heads, K head
width.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import torch
from torch import Tensor

from ..diag_core import WanConfig
from ..diag_core.attention import Attention, sdpa
from ..diag_core.fast import is_changed
from ..diag_core.layers import block_forward
from ..diag_core.wan_dit import forward_impl

log = logging.getLogger(__name__)

_OTHERS = {
    "VaceWanModel": "VACE",
    "CameraWanModel": "camera-control",
    "WanModel_S2V": "speech-to-video",
    "HumoWanModel": "HuMo",
    "AnimateWanModel": "Animate",
}


def check_model(model: Any) -> WanConfig:
    """Sizes of a MODEL that the Diagonal Sampler can run.

    Raises:
        ValueError: anything but a Wan 2.1 text-to-video model; says what it is instead.
    """
    stock = model.get_model_object("diffusion_model")
    name = type(stock).__name__
    wanted = "the Diagonal Sampler runs Wan 2.1 text-to-video models (1.3B, 14B and the embedded demo)"
    if not isinstance(stock, comfy.ldm.wan.model.WanModel):
        raise ValueError(f"{wanted}; this MODEL is a {type(model.model).__name__}. Load a Wan model")
    if name in _OTHERS:
        raise ValueError(f"{wanted}; this is a {_OTHERS[name]} model. Load a text-to-video model")
    if stock.model_type != "t2v" or stock.in_dim != stock.out_dim or getattr(stock, "ref_conv", None) is not None:
        raise ValueError(
            f"{wanted}; this one has {stock.in_dim} input channels (image-to-video or control). Load a text-to-video "
            "model: it starts from a picture with Start Image Latent"
        )
    return WanConfig(
        dim=stock.dim,
        ffn_dim=stock.ffn_dim,
        num_heads=stock.num_heads,
        num_layers=stock.num_layers,
        in_dim=stock.in_dim,
        out_dim=stock.out_dim,
        freq_dim=stock.freq_dim,
        text_dim=stock.text_dim,
        text_len=stock.text_len,
        eps=stock.eps,
    )


def stock_forward(
    stock: Any,
    latents: Tensor,
    timestep: Tensor,
    context: Tensor,
    *,
    cache: Any,
    start_frame: int,
    transformer_options: dict[str, Any],
) -> Tensor:
    """`WanDiT.forward` over a stock WanModel: latents [B,C,f,H,W] in the dtype to compute in, context [B,L,D] as it is.

    Attention goes through ComfyUI's own function, and blocks that other packs replace (skip-layer guidance and the
    like) are replaced here too. ComfyUI's own cross-attention is computed from its layers, so that the text's keys are
    kept from step to step; any other is called as the module it is.
    """
    return forward_impl(
        stock,
        latents,
        timestep,
        context,
        cache=cache,
        start_frame=start_frame,
        run_block=partial(_run_block, transformer_options=transformer_options),
        attend=comfy_attention(latents.device, transformer_options),
        dtype=latents.dtype,
        text_len=context.shape[1],
    )


def _run_block(block: Any, x: Tensor, *, layer: int, transformer_options: dict[str, Any], **inputs: Any) -> Tensor:
    def as_module(h: Tensor, text: Tensor) -> Tensor:
        return block.cross_attn(h, text, context_img_len=None, transformer_options=transformer_options)

    # The keys of the text are kept from step to step, unless another pack has a hand in the cross-attention.
    cross = None if is_stock(block.cross_attn, comfy.ldm.wan.model.WanT2VCrossAttention) else as_module

    def run(args: dict[str, Any]) -> dict[str, Tensor]:
        return {"img": block_forward(block, args["img"], layer=layer, cross=cross, **inputs)}

    replaced = transformer_options.get("patches_replace", {}).get("dit", {}).get(("double_block", layer))
    given = {
        "img": x,
        "txt": inputs["text"],
        "vec": inputs["modulation"],
        "pe": inputs["rotation"],
        "transformer_options": transformer_options,
    }
    return (run(given) if replaced is None else replaced(given, {"original_block": run}))["img"]


def is_stock(module: Any, kind: type[Any]) -> bool:
    """Whether a module runs ComfyUI's own code and nothing else."""
    return type(module) is kind and not is_changed(module)


def comfy_attention(device: torch.device, transformer_options: dict[str, Any]) -> Attention:
    """ComfyUI's attention, as its command line and other packs have chosen it.

    On a CPU, where nothing was chosen, it would be the slow split kernel: PyTorch's own is used there.
    """
    if device.type == "cpu" and "optimized_attention_override" not in transformer_options:
        return sdpa

    def attend(q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = q_BNHK.shape[2]
        out = comfy.ldm.modules.attention.optimized_attention(
            q_BNHK.flatten(2),
            k_BMHK.flatten(2),
            v_BMHK.flatten(2),
            heads=heads,
            mask=mask,
            transformer_options=transformer_options,
        )
        return out.unflatten(-1, (heads, -1))

    return attend


def warn_of_ignored_patches(stock: Any) -> None:
    """Says in the log what another pack has changed and this forward cannot honour."""
    for number, block in enumerate(stock.blocks):
        if not is_stock(block.self_attn, comfy.ldm.wan.model.WanSelfAttention) or "forward" in vars(block):
            log.warning(
                "Diagonal Sampler: another pack has replaced the self-attention or the forward of block %d (and maybe "
                "more); the cached forward does not run that code. Take its node out if the result looks wrong",
                number,
            )
            return
