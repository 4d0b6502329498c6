"""Linear layers in FP8, for those who ask for them: not the same results, and faster only where measured to be.

Weights are quantised once, with a scale for each output; activations as they come, with a scale for each token. Both
to e4m3, whose largest number is 448.

Legend: N tokens, D inputs, O outputs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_ops import quantise
from .weights import fuse, fused

_ALIGNED = 16  # what the products of FP8 want inputs and outputs to be multiples of


class Fp8Linear:
    """A linear layer's quantised copy: x [...,D] -> [...,O] in x's dtype.

    Args:
        weight: [O,D].
        bias: [O].
        ops: kernels, or torch_ops.
    """

    def __init__(self, weight: Tensor, bias: Tensor, ops: ModuleType) -> None:
        self.weight, self.scale = quantise(weight.detach())
        self.bias, self.ops = bias.detach(), ops

    def __call__(self, x: Tensor) -> Tensor:
        rows, scale = self.ops.quantise(x.flatten(0, -2))
        if x.is_cuda:
            out: Tensor = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), bias=self.bias.to(torch.bfloat16),
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip
        else:  # the same numbers, multiplied as they are: not fast, but where there is no GPU to be had
            out = F.linear(rows.float() * scale, self.weight.float() * self.scale, self.bias.float())
        return out.to(x.dtype).view(*x.shape[:-1], -1)


class Fp8Block:
    """As `FusedBlock`. The copies are beside the model's own weights, and half as large; weights that are changed in
    place are not seen."""

    def __init__(self, block: Any, ops: ModuleType) -> None:
        self.block = block
        fuse(block)
        self.qkv = Fp8Linear(*fused(block), ops)

        def copied(linear: Any) -> Fp8Linear:
            return Fp8Linear(linear.weight, linear.bias, ops)

        self.self_out, self.cross_q, self.cross_out = map(
            copied, (block.self_attn.o, block.cross_attn.q, block.cross_attn.o)
        )
        up, self._between, down = block.ffn
        self._up, self._down = copied(up), copied(down)

    def ffn(self, x: Tensor) -> Tensor:
        return self._down(self._between(self._up(x)))


def fp8_missing(model: Any) -> str | None:
    """Why a model's linear layers cannot run in FP8 here, or None."""
    device = model.patch_embedding.weight.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return "it takes a card of compute capability 9.0 (Hopper) or newer"
    first = model.blocks[0]
    if first.self_attn.o.weight.shape[0] % _ALIGNED or first.ffn[0].weight.shape[0] % _ALIGNED:
        return f"its widths are no multiples of {_ALIGNED}"
    return None
