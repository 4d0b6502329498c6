"""Where the time goes, by kind of kernel, as PyTorch's profiler sees one video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .meter import Meter

# In this order: the first that fits a kernel's name is its kind.
_KINDS = (
    ("attention", r"attention|attn|flash|fmha|sage|qk_int8"),
    ("fused by this project", r"norm_modulate|add_gated|write_qkv|rms_norm|norm_silu|quantise"),
    ("convolutions", r"conv|wgrad|dgrad|fprop|winograd|implicit_gemm|nchwToNhwc|nhwcToNchw"),
    ("matrix products", r"gemm|cutlass|cublas|nvjet|xmma|s16816|addmm|aten::mm$|aten::bmm|scaled_mm|gemv|splitk"),
    ("copies", r"memcpy|memset|copy|aten::cat|CatArray|aten::clone|aten::contiguous|aten::to$|fill"),
    ("norms and element-wise", r"elementwise|norm|reduce|softmax|aten::|index|silu|gelu|upsample"),
)


def kind_of(kernel: str) -> str:
    """The kind of a kernel (on a GPU) or an operator (on a CPU) by its name; "other" where nothing tells."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


@dataclass(frozen=True)
class Breakdown:
    """Attributes:
    seconds: device time by kind, greatest first. Kernels that run at once are each counted whole.
    wall: seconds of the profiled run, slower than others by the profiling.
    longest: the kernels that took most, as (name, seconds, calls).
    """

    seconds: dict[str, float]
    wall: float
    longest: tuple[tuple[str, float, int], ...]


def take_apart(run: Callable[[], object], device: torch.device, trace: Path | None = None) -> Breakdown:
    """Profiles `run`, which has run before; `trace` is a file to write for chrome://tracing or Perfetto."""
    meter = Meter(device)
    activity = ProfilerActivity.CUDA if meter.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        begin = meter.now()
        run()
        wall = meter.now() - begin
    took: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events() or ():
        if not meter.on_gpu:
            took[event.name] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:
            took[event.name] += event.time_range.elapsed_us()
        calls[event.name] += 1
    kinds: Counter[str] = Counter()
    for name, microseconds in took.items():
        kinds[kind_of(name)] += microseconds
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    longest = tuple((name, 1e-6 * microseconds, calls[name]) for name, microseconds in took.most_common(12))
    return Breakdown({kind: 1e-6 * us for kind, us in kinds.most_common()}, wall, longest)
