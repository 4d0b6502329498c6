"""One forward of a model in the precision that a recipe asks for.

Legend: B samples, C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from diag_core import WanDiT
from diag_core.noise_schedule import x0_from_flow

Forward = Callable[..., Tensor]
"""called as a `WanDiT` is"""
PRECISIONS = ("bf16", "fp32", "auto")
"""of recipes; auto is bf16 where the device is quick in it, else fp32"""


def precision_of(name: str, device: torch.device | str) -> torch.dtype:
    """What one of PRECISIONS is on a device."""
    if name == "auto":
        return torch.bfloat16 if half_is_quick(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def half_is_quick(device: torch.device | str) -> bool:
    """Whether bfloat16 is worth using there. An x86 CPU needs AVX-512 for it: without, PyTorch 2.11 multiplies bfloat16
    matrices 140 times as slowly as float32 ones (0.95 against 133 GFLOP/s, two cores of an AMD EPYC with AVX2). Others
    were not tried, and count as slow."""
    return torch.device(device).type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


def autocast(device: torch.device | str, name: str = "auto") -> torch.autocast:
    """Autocast of float32 weights to one of PRECISIONS; a context that changes nothing where that is fp32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision_of(name, device).itemsize == 2)


def sampling_precision(model: WanDiT) -> torch.dtype:
    """What float32 weights are sampled in, by autocast: bfloat16 where the device is quick in it. Always so where they
    are sharded, for then they may be gathered as bfloat16, beside a cache in the dtype of the shards. Others are
    sampled as they are, for which float32 stands."""
    half = model.dtype == torch.float32 and (isinstance(model, FSDPModule) or half_is_quick(model.device))
    return torch.bfloat16 if half else torch.float32


def sampling_autocast(model: WanDiT) -> torch.autocast:
    """Autocast to that."""
    precision = sampling_precision(model)
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision.itemsize == 2)


def flow_of(
    model: Forward, x: Tensor, sigma: float | Tensor, context: Tensor, *, precision: torch.dtype, **where: Any
) -> Tensor:
    """Flow [B,C,F,H,W], float32, of `x` at `sigma` (a number, [B] or [B,F]).

    Autocast is entered for each forward alone: it keeps its copies of the weights until it is left, and a copy made
    without gradient would cut the next forward's gradient off from the weights.

    Args:
        where: what else the model's forward takes (`cache`, `start_frame`, `mask`, ...).
    """
    if not isinstance(sigma, Tensor):
        sigma = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
    with torch.autocast(x.device.type, precision, enabled=precision.itemsize == 2):
        flow: Tensor = model(x, 1000 * sigma, context, **where)
    return flow.float()


def estimate_x0(model: Forward, x: Tensor, sigma_B: Tensor, context: Tensor, *, precision: torch.dtype) -> Tensor:
    """The clean latents that a bidirectional model reads from `x` at `sigma_B`, [B,C,F,H,W]."""
    flow = flow_of(model, x, sigma_B, context, precision=precision)
    return x0_from_flow(x, flow, sigma_B[:, None, None, None, None])


def guided_flow(
    model: Forward,
    x: Tensor,
    sigma: float | Tensor,
    context: Tensor,
    negative: Tensor,
    cfg: float,
    *,
    precision: torch.dtype,
) -> Tensor:
    """negative + cfg (prompt - negative), both in one forward of twice the batch; at cfg 1 the prompt's alone.

    Args:
        negative: [1,L,text_dim], the same for all samples.
    """
    if cfg == 1:
        return flow_of(model, x, sigma, context, precision=precision)
    if isinstance(sigma, Tensor):
        sigma = torch.cat([sigma, sigma])
    both = torch.cat([context, negative.expand_as(context)])
    flow, other = flow_of(model, torch.cat([x, x]), sigma, both, precision=precision).chunk(2)
    return other + cfg * (flow - other)
