"""One forward of a chunk over fused weights: nothing in it depends on values, so that a CUDA graph can hold it.

Legend: B batch, C latent channels, f latent frames of the chunk, N tokens, D width, H heads, K head width, L text
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import Attention
from ..config import PATCH
from ..layers import heads, sinusoids
from .weights import FastBlock


@dataclass(frozen=True)
class ChunkInputs:
    """What changes from forward to forward; a graph reads it where it lies."""

    latents: Tensor
    """[B,C,f,H,W]"""
    timestep: Tensor
    """[B]"""
    turn: Tensor
    """[N,K/2,2] float32: cosine and sine of each token's angles"""
    slots: Tensor
    """int32 [f]: where the chunk's latent frames lie in the cache"""


@dataclass(frozen=True)
class Memory:
    """What forwards attend to; tensors of fixed place."""

    k: Sequence[Tensor]
    """[B, slots x tokens, H, K], one a layer, written by the forward"""
    v: Sequence[Tensor]
    cross: Sequence[tuple[Tensor, Tensor]]
    """keys and values [B,L,H,K] of the prompt, one pair a layer"""


def forward(
    model: Any,
    blocks: Sequence[FastBlock],
    ops: ModuleType,
    inputs: ChunkInputs,
    memory: Memory,
    attended: int,
    attend: Attention,
    dtype: torch.dtype,
) -> Tensor:
    """Flow [B,C,f,H,W] in the dtype of the latents.

    Args:
        model: of Wan's shape, ours or a stock one.
        ops: kernels, or torch_ops.
        attended: tokens at the beginning of the cache that are attended to, the chunk's own among them.
        dtype: what is computed in.
    """
    latents, patch = inputs.latents, model.patch_embedding
    x = _patches(latents.to(patch.weight.dtype), patch).to(dtype)
    time = model.time_embedding(sinusoids(inputs.timestep, model.freq_dim).to(dtype))  # [B,D]
    # All blocks' at once, [layers,B,6,D]: one addition rather than one a block.
    own = torch.stack([fast.block.modulation for fast in blocks]).to(dtype)
    modulations = own + model.time_projection(time).unflatten(-1, (6, -1))
    for layer, (fast, modulation) in enumerate(zip(blocks, modulations, strict=True)):
        _block(fast, ops, x, modulation, inputs, memory, layer, attended, attend)
    head = model.head
    shift, scale = (head.modulation.to(time) + time.unsqueeze(1)).unbind(1)
    out = head.head(ops.norm_modulate(x, shift, scale, head.norm.eps))
    return _unpatched(out, latents.shape).to(latents.dtype)


def _block(
    fast: FastBlock,
    ops: ModuleType,
    x: Tensor,
    modulation: Tensor,
    inputs: ChunkInputs,
    memory: Memory,
    layer: int,
    attended: int,
    attend: Attention,
) -> None:
    """Into x [B,N,D]; modulation [B,6,D]."""
    block = fast.block
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)
    attn = block.self_attn
    qkv = fast.qkv(ops.norm_modulate(x, shift1, scale1, block.norm1.eps))
    q = ops.write_qkv(
        qkv, attn.norm_q.weight, attn.norm_k.weight, attn.norm_q.eps, inputs.turn, inputs.slots, memory.k[layer],
        memory.v[layer],
    )  # fmt: skip
    seen = attend(q, memory.k[layer][:, :attended], memory.v[layer][:, :attended])
    ops.add_gated(x, fast.self_out(seen.flatten(2)), gate1)
    cross = block.cross_attn
    q = heads(ops.rms_norm(fast.cross_q(block.norm3(x)), cross.norm_q.weight, cross.norm_q.eps), cross.num_heads)
    x.add_(fast.cross_out(attend(q, *memory.cross[layer]).flatten(2)))
    ops.add_gated(x, fast.ffn(ops.norm_modulate(x, shift2, scale2, block.norm2.eps)), gate2)


def _patches(latents: Tensor, embedding: Any) -> Tensor:
    """The patch embedding as a matrix product: a convolution whose kernels do not overlap. [B,N,D]"""
    batch, channels, frames, height, width = latents.shape
    rows, columns = height // PATCH[1], width // PATCH[2]
    cut = latents.view(batch, channels, frames, rows, PATCH[1], columns, PATCH[2])
    cut = cut.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * rows * columns, -1)
    return F.linear(cut, embedding.weight.flatten(1), embedding.bias)


def _unpatched(out: Tensor, shape: Sequence[int]) -> Tensor:
    batch, _, frames, height, width = shape
    out = out.view(batch, frames, height // PATCH[1], width // PATCH[2], PATCH[1], PATCH[2], -1)
    return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height, width)


def prompt_keys(model: Any, text: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B,L,H,K] of every layer from the embedded prompt [B,L,D]: once a prompt."""
    found = []
    for block in model.blocks:
        attn = block.cross_attn
        found.append((heads(attn.norm_k(attn.k(text)), attn.num_heads), heads(attn.v(text), attn.num_heads)))
    return found
