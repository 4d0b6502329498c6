"""How fast matrix products are here at best: what the DiT's rate is to be judged against.

Measured rather than taken from a data sheet: no card keeps its sheet's figure under load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .meter import Meter

# Squares and a wide one: which shape fills a device best differs.
_ON_GPU = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 16384, 4096))
_ON_CPU = ((512, 512, 512), (1024, 512, 512))
_SECONDS = 0.3  # for a shape


@dataclass(frozen=True)
class Peak:
    tflop_per_second: float
    shape: tuple[int, int, int]
    """rows, inner width and columns of the fastest product"""


@torch.no_grad()
def matrix_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The fastest of a few matrix products in `dtype`, each repeated for a fraction of a second."""
    meter = Meter(device)
    found = [Peak(_rate(shape, dtype, meter), shape) for shape in (_ON_GPU if meter.on_gpu else _ON_CPU)]
    return max(found, key=lambda peak: peak.tflop_per_second)


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, meter: Meter) -> float:
    rows, inner, columns = shape
    generator = torch.Generator(meter.device).manual_seed(0)
    a = torch.randn(rows, inner, generator=generator, device=meter.device).to(dtype)
    b = (
        torch.randn(columns, inner, generator=generator, device=meter.device).to(dtype).t()
    )  # as a linear layer's weight
    out = torch.empty(rows, columns, dtype=dtype, device=meter.device)

    def seconds(times: int) -> float:
        begin = meter.now()
        for _ in range(times):
            torch.mm(a, b, out=out)
        return meter.now() - begin

    seconds(3)
    times = max(3, int(_SECONDS / max(seconds(3) / 3, 1e-6)))
    return 2 * rows * inner * columns * times / seconds(times) / 1e12
