"""The time of encoding a prompt with umT5, apart from all else: random weights, in memory only while measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .measure import Spread
from .meter import Meter

# Of umT5-XXL, as Wan has it.
XXL: dict[str, Any] = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


@torch.no_grad()
def measure_text(
    device: torch.device, dtype: torch.dtype, *, tokens: int, runs: int, sizes: dict[str, Any] | None = None
) -> Spread:
    """Seconds of encoding one prompt, padded to `tokens`, once it is in tokens and the encoder on the device.

    Raises:
        ValueError: transformers is missing.
    """
    try:
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError as error:
        raise ValueError("umT5 needs transformers: install this project with its extra `text`") from error
    with torch.device("meta"):
        encoder: nn.Module = UMT5EncoderModel(UMT5Config(**(sizes or XXL)))
    encoder = encoder.to(dtype).to_empty(device=device).eval()
    for parameter in encoder.parameters():
        # Norms are 1, and the rest is small: T5 does not divide its scores.
        parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(std=0.02)
    meter, prompt = Meter(device), torch.zeros(1, tokens, dtype=torch.long, device=device)
    mask = torch.ones_like(prompt)
    seconds = []
    for _ in range(runs + 2):  # two to warm up
        begin = meter.now()
        encoder(prompt, attention_mask=mask)
        seconds.append(meter.now() - begin)
    return Spread(tuple(seconds[2:]))
