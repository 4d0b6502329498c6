"""Whether to take the fast path: where it gives the same results, and where it was made for."""

from __future__ import annotations

import logging
from typing import Any

from .decoder import FastDecoder
from .model import FastDiT, why_not

log = logging.getLogger(__name__)

MODES = ("auto", "on", "off")


def accelerated(model: Any, mode: str = "auto", **options: Any) -> Any:
    """The model on the fast path, or as it is; the log says which, and why.

    Args:
        model: a `WanDiT`.
        mode: "auto" takes the fast path on a GPU, unless it would change the results; "on" takes it on a CPU too;
            "off" leaves the model as it is.
        options: of `FastDiT`.

    Raises:
        ValueError: "on", and the fast path cannot run this model; FP8 or torch.compile without "on"; another mode than
            these.
    """
    if mode not in MODES:
        raise ValueError(f"the fast path is one of {', '.join(MODES)}, got {mode!r}")
    for name, what in (("fp8", "FP8"), ("compiled", "torch.compile")):
        if options.get(name) and mode != "on":
            raise ValueError(f"{what} is part of the fast path, which must be on for it, got {mode!r}")
    if mode == "off":
        return model
    if mode == "auto":
        if model.device.type != "cuda":
            log.info("plain path: the fast one is made for a GPU")
            return model
        reason = why_not(model)
        if reason is not None:
            log.warning("plain path: %s", reason)
            return model
    fast = FastDiT(model, **options)
    log.info("fast path, %s", "with CUDA graphs" if fast.graphs else "without CUDA graphs")
    return fast


def accelerated_decoder(vae: Any, mode: str = "auto", **options: Any) -> Any:
    """What decodes streams as the VAE does, on the fast path or as it is; arguments as `accelerated`.

    Args:
        vae: a `WanVAE` or `TinyVAE`, changed in place (`FastDecoder`).
        options: of `FastDecoder`.
    """
    device = next(vae.decoder.parameters()).device
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return vae
    return FastDecoder(vae, **options)
