"""Wall clock and memory of a device, and the names of what runs there.

The only file of the benchmark that knows CUDA. Times are taken on the host with the device idle before and after, so
they hold everything a user waits for; nothing inside a measured stretch is synchronised for the sake of measuring.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell."""

    current: int | None
    peak: int | None


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, a GPU by its number; None is the GPU where there is one.

    Raises:
        ValueError: neither a CPU nor a CUDA device, or one that is not there.
    """
    available = torch.cuda.is_available()
    if name is None:
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"no device is called {name!r}; use cpu, cuda or cuda:0, cuda:1, ...") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"only cpu and cuda can be measured, not {name!r}")
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"there is no device {name!r} here: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def limit_memory(device: torch.device, size: int) -> None:
    """Refuses PyTorch more than `size` bytes of a GPU's memory from now on, as a smaller card would.

    Raises:
        ValueError: no GPU, or one that has no more than that.
    """
    if device.type != "cuda":
        raise ValueError(f"the memory of a GPU can be limited, not that of {str(device)!r}")
    there = torch.cuda.get_device_properties(device).total_memory
    if size >= there:
        raise ValueError(f"{device} has {there / 1e9:.1f} GB: a limit of {size / 1e9:g} GB is none")
    torch.cuda.set_per_process_memory_fraction(size / there, device)


class Meter:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    @property
    def memory_kind(self) -> str:
        return "allocated by PyTorch on the GPU" if self.on_gpu else "resident set of the whole process"

    def now(self) -> float:
        """Seconds, once the device has done all it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Starts the GPU's peak anew. A process's own peak counts from its beginning."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self) -> Memory:
        if self.on_gpu:
            return Memory(torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device))
        return Memory(_resident(), _peak_resident())


def _resident() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # Linux alone has it
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_resident() -> int | None:
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Hardware and software that a figure depends on; plain values for JSON."""
    machine: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "cpu_cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
