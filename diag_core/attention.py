"""Scaled dot-product attention over several back ends.

Legend: B batch, N query tokens, M key tokens, H heads, D head width. It knows nothing of caches: what is attended is
what it is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """q [B,N,H,D], k and v [B,M,H,D] -> [B,N,H,D]; mask [N,M] bool, True where attended."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Blocks:
    """Which tokens attend to which, where that is the same for runs of tokens. In place of a mask it lets kernels do it
    that know none, and what is not attended takes no time."""

    runs: tuple[tuple[slice, tuple[slice, ...]], ...]
    """(queries, the keys that they attend to), in order; every query in one of them"""

    def attend(self, kernel: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B,N,H,D], k and v [B,M,H,D] -> [B,N,H,D], run by run."""
        return torch.cat([kernel(q[:, own], _pick(k, seen), _pick(v, seen)) for own, seen in self.runs], 1)


def _pick(x_BMHD: Tensor, parts: tuple[slice, ...]) -> Tensor:
    return x_BMHD[:, parts[0]] if len(parts) == 1 else torch.cat([x_BMHD[:, part] for part in parts], 1)


@dataclass(frozen=True)
class Uncaptured:
    """Attention that CUDA graphs may miss: a replay would read what an earlier forward left, and nothing would fail."""

    attend: Attention
    why: str
    """for a log"""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(q, k, v, mask)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's own choice of kernel."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _cudnn() -> Attention:
    if not torch.backends.cuda.is_built() or not torch.backends.cudnn.is_available():
        raise ImportError("it needs PyTorch with CUDA and cuDNN")

    def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Not by `sdpa_kernel`: its switches are the process's, and another thread decodes meanwhile.
        heads = (x.transpose(1, 2) for x in (q, k, v))
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(*heads, None, differentiable)[0]
        return out.transpose(1, 2)

    return _dense(cudnn)


def _dense(kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Attention:
    """A kernel without masks, for half precision. Others go to SDPA: masked calls, and float32, which autocast leaves
    in a cache of float32 weights."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None or q.dtype not in (torch.float16, torch.bfloat16):
            return sdpa(q, k, v, mask)
        return kernel(q, k, v)

    return attention


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _flash2() -> Attention:
    kernel = importlib.import_module("flash_attn").flash_attn_func
    return _dense(lambda q, k, v: _first(kernel(q, k, v)))


def _flash3() -> Attention:
    kernel = importlib.import_module("flash_attn_interface").flash_attn_func
    return _dense(lambda q, k, v: _first(kernel(q, k, v)))


def _flash4() -> Attention:
    kernel = importlib.import_module("flash_attn.cute").flash_attn_func
    return _dense(lambda q, k, v: _first(kernel(q, k, v)))


def _sage() -> Attention:
    kernel = importlib.import_module("sageattention").sageattn
    # As of 2.2: https://github.com/thu-ml/SageAttention/pull/380
    why = "SageAttention launches its kernels on the default stream, which no capture sees"
    return Uncaptured(_dense(lambda q, k, v: kernel(q, k, v, tensor_layout="NHD")), why)


_BACKENDS: dict[str, tuple[Callable[[], Attention], str]] = {
    "sdpa": (lambda: sdpa, "part of PyTorch"),
    "cudnn": (_cudnn, "PyTorch built with CUDA and cuDNN"),
    "flash2": (_flash2, "the package flash-attn"),
    "flash3": (_flash3, "the package flash-attn-3 (flash_attn_interface)"),
    "flash4": (_flash4, "the package flash-attn-4 (flash_attn.cute)"),
    "sage": (_sage, "the package sageattention"),
}
NAMES = ("auto", *_BACKENDS)


def _auto() -> Attention:
    """FlashAttention 3 on the Hopper cards it was written for, where it is installed; SDPA everywhere else."""
    try:
        hopper: Attention | None = _flash3()
    except ImportError:
        hopper = None

    def auto(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if hopper is not None and q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9:
            return hopper(q, k, v, mask)
        return sdpa(q, k, v, mask)

    return auto


def attention_backend(name: str = "auto") -> Attention:
    """The back end called `name`.

    "auto" takes FlashAttention 3 where it is installed and the card is a Hopper, else PyTorch's SDPA, whose own choice
    includes cuDNN, flash and memory-efficient kernels.

    Raises:
        ValueError: an unknown name, or a back end that is not installed (named together with what it needs).
    """
    if name == "auto":
        return _auto()
    if name not in _BACKENDS:
        raise ValueError(f"unknown attention back end {name!r}; choose one of {', '.join(NAMES)}")
    load, needs = _BACKENDS[name]
    try:
        return load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"attention back end {name!r} is not available here: it needs {needs} ({error}). "
            "Install that, or choose sdpa, which always works"
        ) from error
