"""The fused operations in plain PyTorch: what the kernels are tested against, and what runs where Triton does not.

Legend: B batch, N tokens of a chunk (f latent frames of `tokens` each), D width, H heads, K head width, P = K/2 pairs,
S slots of the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, then x (1 + scale) + shift: x [B,N,D], shift and scale [B,D] -> [B,N,D] in x's dtype.

    All of it in float32; only the result is rounded.
    """
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)).to(x.dtype)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate update, into x: x and update [B,N,D], gate [B,D]."""
    return x.copy_(x.float() + update.float() * gate.float().unsqueeze(1))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [B,N,D] over its full width, in float32."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N,D] -> e4m3 [N,D] and a float32 scale for each row [N,1], whose product is x again; a row of zeros stays."""
    x32 = x.float()
    scale = x32.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (x32 / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def norm_silu(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Each position's channels to length 1, times weight [C] and scale, through SiLU: x [B,C,...]."""
    weight = (weight * scale).view(-1, *[1] * (x.dim() - 2))
    return F.silu(F.normalize(x, dim=1) * weight)


def write_qkv(
    qkv: Tensor,
    norm_q: Tensor,
    norm_k: Tensor,
    eps: float,
    turn: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
) -> Tensor:
    """Normalises and turns q and k of a chunk, and writes k and v into the cache.

    Args:
        qkv: [B,N,3D].
        norm_q, norm_k: weights [D] of the RMS norms over the full width.
        turn: cosine and sine of every pair's angle [N,P,2], float32.
        slots: int32 [f], the cache slot of each latent frame of the chunk.
        k_cache, v_cache: [B, S tokens, H, K], written in place.

    Returns:
        q [B,N,H,K], normalised and turned.
    """
    count = qkv.shape[1]
    heads, width = k_cache.shape[2:]
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = (
        _turned(rms_norm(part, norm, eps).unflatten(-1, (heads, width)), turn)
        for part, norm in ((q, norm_q), (k, norm_k))
    )
    tokens = count // slots.shape[0]
    rows = (slots.long()[:, None] * tokens + torch.arange(tokens, device=qkv.device)).flatten()
    k_cache.index_copy_(1, rows, k.to(k_cache.dtype))
    v_cache.index_copy_(1, rows, v.unflatten(-1, (heads, width)).to(v_cache.dtype))
    return q


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Adjacent pairs of x [B,N,H,K] turned in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.view_as_complex(turn)[:, None]).flatten(-2).to(x.dtype)
