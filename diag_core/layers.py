"""The transformer block of Wan 2.1 and its parts.

Legend: B batch, F latent frames, N tokens (F x rows x columns, row-major), L text tokens, D model width, H heads,
K head width. Modulation is per latent frame, or one for all frames (F = 1).

`block_forward` is a function over any block of Wan's shape: ours, or ComfyUI's stock one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Blocks, sdpa
from .rope import rotate


class Past(Protocol):
    """What a chunk's own keys and values are joined with; the model only ever reads and joins, it never advances."""

    def place(self, start_frame: int, frames: int) -> None:
        """Announces the latent frames of the coming forward. Repeated for the same frames it does nothing."""

    def join(self, layer: int, k: Tensor, v: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Unrotated keys and values [B,N,H,K] of the chunk -> all rotated keys and values to attend to."""


class CrossKeys(Protocol):
    """Keeps what depends on the prompt alone, so that it is computed once a prompt."""

    text: Tensor | None
    cross: list[tuple[Tensor, Tensor] | None]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32, cast back before the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Attend(nn.Module):
    """Parameters shared by self- and cross-attention: q, k, v, o and the norms of q and k over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)


def heads(x_BND: Tensor, num_heads: int) -> Tensor:
    return x_BND.unflatten(-1, (num_heads, -1))


def self_attention(
    attn: Any,
    x: Tensor,
    rotation: Tensor,
    *,
    past: Past | None = None,
    layer: int = 0,
    mask: Tensor | Blocks | None = None,
    attend: Attention = sdpa,
) -> Tensor:
    """x [B,N,D] -> [B,N,D]: over the tokens given and those of `past`; `mask` [N,M] or blocks restrict it."""
    q = heads(attn.norm_q(attn.q(x)), attn.num_heads)
    k = heads(attn.norm_k(attn.k(x)), attn.num_heads)
    v = heads(attn.v(x), attn.num_heads)
    if past is None:
        k = rotate(k, rotation)
    else:
        k, v = past.join(layer, k, v, rotation)
    # v comes from a plain linear; under autocast the norms give float32, and a cache has a dtype of its own.
    q, k = rotate(q, rotation).to(v.dtype), k.to(v.dtype)
    out = mask.attend(attend, q, k, v) if isinstance(mask, Blocks) else attend(q, k, v, mask)
    return attn.o(out.flatten(2))


def cross_attention(
    attn: Any, x: Tensor, text: Tensor, *, keys: CrossKeys | None = None, layer: int = 0, attend: Attention = sdpa
) -> Tensor:
    """x [B,N,D] over the embedded text [B,L,D], unmasked; keys and values are kept in `keys` where given."""
    q = heads(attn.norm_q(attn.q(x)), attn.num_heads)
    kept = None if keys is None else keys.cross[layer]
    if kept is None:
        kept = heads(attn.norm_k(attn.k(text)), attn.num_heads), heads(attn.v(text), attn.num_heads)
        if keys is not None:
            keys.cross[layer] = kept
    k, v = kept
    return attn.o(attend(q.to(v.dtype), k.to(v.dtype), v).flatten(2))


def modulate(x_BND: Tensor, shift_BFD: Tensor, scale_BFD: Tensor) -> Tensor:
    """x (1 + scale) + shift, each latent frame's tokens with its own."""
    x_BFND = x_BND.unflatten(1, (shift_BFD.shape[1], -1))
    return (x_BFND * (1 + scale_BFD.unsqueeze(2)) + shift_BFD.unsqueeze(2)).flatten(1, 2)


def gated(x_BND: Tensor, update_BND: Tensor, gate_BFD: Tensor) -> Tensor:
    """x + gate update."""
    update = update_BND.unflatten(1, (gate_BFD.shape[1], -1)) * gate_BFD.unsqueeze(2)
    return x_BND + update.flatten(1, 2)


def block_forward(
    block: Any,
    x: Tensor,
    *,
    modulation: Tensor,
    text: Tensor,
    rotation: Tensor,
    layer: int = 0,
    past: Past | None = None,
    keys: CrossKeys | None = None,
    mask: Tensor | Blocks | None = None,
    attend: Attention = sdpa,
    cross: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """One transformer block: x [B,N,D], modulation [B,F or 1,6,D] (the time projection), text [B,L,D] -> [B,N,D].

    Args:
        cross: (normalised x, text) -> [B,N,D], where cross-attention is not to be computed from its parts: a stock
            module may carry patches of others.
    """
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation.unsqueeze(1).to(modulation) + modulation).unbind(2)
    h = modulate(block.norm1(x), shift1, scale1).to(x.dtype)
    x = gated(x, self_attention(block.self_attn, h, rotation, past=past, layer=layer, mask=mask, attend=attend), gate1)
    h = block.norm3(x)
    x = x + (
        cross_attention(block.cross_attn, h, text, keys=keys, layer=layer, attend=attend)
        if cross is None
        else cross(h, text)
    )
    h = modulate(block.norm2(x), shift2, scale2).to(x.dtype)
    return gated(x, block.ffn(h), gate2)


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.self_attn = Attend(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = Attend(dim, num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """See `block_forward`, which also runs over blocks that are not ours."""
        return block_forward(self, x, **inputs)


class Head(nn.Module):
    """The last projection, modulated by the time embedding itself rather than by its projection."""

    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)


def head_forward(head: Any, x: Tensor, time: Tensor) -> Tensor:
    """x [B,N,D], time embedding [B,F or 1,D] -> [B,N,out]."""
    shift, scale = (head.modulation.unsqueeze(1).to(time) + time.unsqueeze(2)).unbind(2)
    return head.head(modulate(head.norm(x), shift, scale).to(x.dtype))


def sinusoids(timestep: Tensor, freq_dim: int) -> Tensor:
    """Timesteps [...] in 0..1000 -> [..., freq_dim]: cosines, then sines, computed in float64."""
    half = freq_dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.to(torch.float64).unsqueeze(-1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def pad_text(context: Tensor, text_len: int) -> Tensor:
    """Zero-pads [B,L,C] to `text_len` tokens when it is shorter."""
    return F.pad(context, (0, 0, 0, max(0, text_len - context.shape[1])))
