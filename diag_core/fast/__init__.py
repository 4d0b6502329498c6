"""The GPU path: fused weights, fused kernels and CUDA graphs over the same model, cache and sampler.

It is a model to the sampler like any other (`FastDiT`), and gives the plain path's results up to rounding. Where it
would not (`why_not`), the plain path runs.
"""

from .choice import MODES, accelerated, accelerated_decoder
from .decoder import FastDecoder, lay_channels_last
from .kernel_choice import KERNELS
from .model import FastDiT, is_changed, why_not

__all__ = [
    "KERNELS",
    "MODES",
    "FastDecoder",
    "FastDiT",
    "accelerated",
    "accelerated_decoder",
    "is_changed",
    "lay_channels_last",
    "why_not",
]
