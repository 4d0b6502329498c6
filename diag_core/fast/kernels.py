"""The fused operations as Triton kernels; same arguments and results as in torch_ops.py.

One program handles one token's full width, so a norm's sums never leave it. Sums and products are in float32.

Legend: as in torch_ops.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import torch_ops


def _block(width: int) -> int:
    return triton.next_power_of_2(width)


def _warps(width: int) -> int:
    return 8 if width > 2048 else 4


@triton.jit
def _norm_modulate(
    x_ptr, shift_ptr, scale_ptr, out_ptr, tokens, shift_stride, scale_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    start = row.to(tl.int64) * WIDTH
    x = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    scaled = centred / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    shift = tl.load(shift_ptr + batch * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + batch * scale_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + start + column, (scaled * (1.0 + scale) + shift).to(out_ptr.dtype.element_ty), mask=inside)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    batch, tokens, width = x.shape
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    _norm_modulate[(batch * tokens,)](
        x, shift, scale, out, tokens, shift.stride(0), scale.stride(0), eps,
        WIDTH=width, BLOCK=_block(width), num_warps=_warps(width),
    )  # fmt: skip
    return out


@triton.jit
def _add_gated(x_ptr, update_ptr, gate_ptr, tokens, gate_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = row.to(tl.int64) * WIDTH + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    update = tl.load(update_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + (row // tokens) * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, (x + update * gate).to(x_ptr.dtype.element_ty), mask=inside)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    assert x.is_contiguous(), "it is written in place"
    _add_gated[(batch * tokens,)](
        x, update.contiguous(), gate, tokens, gate.stride(0),
        WIDTH=width, BLOCK=_block(width), num_warps=_warps(width),
    )  # fmt: skip
    return x


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    out = x / tl.sqrt(tl.sum(x * x, 0) / WIDTH + eps) * weight
    tl.store(out_ptr + start + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    batch, tokens, width = x.shape
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    _rms_norm[(batch * tokens,)](x, weight, out, eps, WIDTH=width, BLOCK=_block(width), num_warps=_warps(width))
    return out


@triton.jit
def _quantise(x_ptr, out_ptr, scale_ptr, largest, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / largest
    y = tl.minimum(tl.maximum(x / scale, -largest), largest)
    tl.store(out_ptr + start + column, y.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + row, scale)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    x = x.contiguous()
    out = torch.empty((rows, width), dtype=torch_ops.FP8, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    _quantise[(rows,)](x, out, scale, torch_ops.FP8_MAX, WIDTH=width, BLOCK=_block(width), num_warps=_warps(width))
    return out, scale


@triton.jit
def _norm_silu(
    x_ptr, weight_ptr, out_ptr, positions, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = row[:, None] * WIDTH + column[None, :]
    inside = (row[:, None] < positions) & (column[None, :] < WIDTH)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
    y = x / length[:, None] * (weight * scale)[None, :]
    tl.store(out_ptr + at, (y / (1.0 + tl.exp(-y))).to(out_ptr.dtype.element_ty), mask=inside)


def norm_silu(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    last = x.movedim(1, -1)
    if not last.is_contiguous():  # not channels-last: a position's channels lie apart
        return torch_ops.norm_silu(x, weight, scale)
    out = torch.empty_like(last)
    width, block = x.shape[1], _block(x.shape[1])
    rows = max(1, 4096 // block)
    positions = x.numel() // width
    _norm_silu[(triton.cdiv(positions, rows),)](
        last, weight, out, positions, scale, WIDTH=width, BLOCK=block, ROWS=rows, num_warps=4
    )
    return out.movedim(-1, 1)


@triton.jit
def _turn_pairs(
    in_ptr, weight_ptr, turn_ptr, out_ptr, eps, WIDTH: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr
):
    """RMS norm of a token's full width, and its pairs turned: even and odd elements are loaded apart."""
    pair = tl.arange(0, BLOCK)
    inside = pair < WIDTH // 2
    even = tl.load(in_ptr + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(in_ptr + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt((tl.sum(even * even, 0) + tl.sum(odd * odd, 0)) / WIDTH + eps)
    even_weight = tl.load(weight_ptr + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd_weight = tl.load(weight_ptr + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    # Rounded where the plain path rounds: after the norm, before the turn.
    kind = out_ptr.dtype.element_ty
    even = (even * scale * even_weight).to(kind).to(tl.float32)
    odd = (odd * scale * odd_weight).to(kind).to(tl.float32)
    angle = pair % (HEAD // 2)
    cosine = tl.load(turn_ptr + 2 * angle, mask=inside, other=0.0)
    sine = tl.load(turn_ptr + 2 * angle + 1, mask=inside, other=0.0)
    tl.store(out_ptr + 2 * pair, (even * cosine - odd * sine).to(kind), mask=inside)
    tl.store(out_ptr + 2 * pair + 1, (even * sine + odd * cosine).to(kind), mask=inside)


@triton.jit
def _write_qkv(
    qkv_ptr, norm_q_ptr, norm_k_ptr, turn_ptr, slots_ptr, q_ptr, k_ptr, v_ptr, count, tokens, cache_stride, eps,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch, token = row // count, row % count
    source = qkv_ptr + row.to(tl.int64) * 3 * WIDTH
    turn = turn_ptr + token * HEAD
    slot = tl.load(slots_ptr + token // tokens)
    target = batch.to(tl.int64) * cache_stride + (slot * tokens + token % tokens).to(tl.int64) * WIDTH
    _turn_pairs(source, norm_q_ptr, turn, q_ptr + row.to(tl.int64) * WIDTH, eps, WIDTH, HEAD, HALF)
    _turn_pairs(source + WIDTH, norm_k_ptr, turn, k_ptr + target, eps, WIDTH, HEAD, HALF)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    v = tl.load(source + 2 * WIDTH + column, mask=inside, other=0.0)
    tl.store(v_ptr + target + column, v.to(v_ptr.dtype.element_ty), mask=inside)


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
    batch, count, triple = qkv.shape
    width, (heads, head) = triple // 3, k_cache.shape[2:]
    assert k_cache.stride() == v_cache.stride() and k_cache[0].is_contiguous(), "the cache is written in place"
    q = torch.empty((batch, count, heads, head), dtype=qkv.dtype, device=qkv.device)
    _write_qkv[(batch * count,)](
        qkv.contiguous(), norm_q, norm_k, turn, slots, q, k_cache, v_cache,
        count, count // slots.shape[0], k_cache.stride(0), eps,
        WIDTH=width, HEAD=head, HALF=_block(width // 2), BLOCK=_block(width), num_warps=_warps(width),
    )  # fmt: skip
    return q
