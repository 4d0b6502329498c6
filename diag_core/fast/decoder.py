"""A VAE's streaming decoder for a GPU: channels-last, norm and SiLU as one kernel, and the tiny VAE's pieces as graphs.

Legend: B batch, C channels, f latent frames of a piece, t its pixel frames, H W sizes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..vae.streaming import Stream, StreamState
from ..vae.wan import WanVAE
from ..vae.wan_layers import RMSNorm
from .graphs import Capturing
from .kernel_choice import operations

log = logging.getLogger(__name__)

_ROOM_FOR_GRAPHS = 12e9  # bytes of a card; the tiny VAE's graph keeps 1.3 GB at 832x480

Decode = Callable[[Tensor, StreamState], Tensor]
"""latents [B,C,f,h,w] of a piece, and what is remembered of those before -> pixels [B,3,t,H,W]"""


class NormSilu(nn.Module):
    """An RMS norm over channels and the SiLU behind it, in one pass; the norm's own parameter."""

    def __init__(self, norm: RMSNorm, ops: ModuleType) -> None:
        super().__init__()
        self.gamma, self.scale, self.ops = norm.gamma, norm.scale, ops

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ops.norm_silu(x, self.gamma.flatten(), self.scale)
        return out


class FastDecoder:
    """A `WanVAE` or `TinyVAE` that decodes streams, for one stream of the device at a time.

    Its decoder is changed in place, and keeps its keys: weights lie channels-last, and norms are fused with what
    follows them.

    Args:
        kernels: "triton", "torch", or "auto": Triton on a GPU where it runs.
        graphs: capture CUDA graphs, of the tiny VAE on a GPU of 12 GB or more. They keep for good what decoding takes
            for a moment: for the Wan VAE 7.5 GB, and its launches hide behind its work anyway.
    """

    def __init__(self, vae: Any, *, kernels: str = "auto", graphs: bool = True) -> None:
        self.vae = vae
        device = next(vae.decoder.parameters()).device
        ops = operations(kernels, device)
        for layers in [module for module in vae.decoder.modules() if isinstance(module, nn.ModuleList)]:
            _fuse(layers, ops)
        lay_channels_last(vae.decoder)
        decode: Decode = vae.streaming_decoder().run

        def on_its_device(latents: Tensor, state: StreamState) -> Tensor:
            with torch.cuda.device_of(latents):  # kernels and captures go to the current one
                return self._pieces.run(latents, state) if self.graphs else decode(latents, state)

        self.graphs = graphs and _worth_graphs(vae, device)
        self._pieces = PieceGraphs(decode)
        self._run = on_its_device

    def streaming_decoder(self) -> Stream:
        return Stream(self._run)


def _worth_graphs(vae: Any, device: torch.device) -> bool:
    if device.type != "cuda" or isinstance(vae, WanVAE):
        return False
    return bool(torch.cuda.get_device_properties(device).total_memory >= _ROOM_FOR_GRAPHS)


def _fuse(layers: nn.ModuleList, ops: ModuleType) -> None:
    for number in range(len(layers) - 1):
        norm = layers[number]
        if isinstance(norm, RMSNorm) and isinstance(layers[number + 1], nn.SiLU):
            layers[number], layers[number + 1] = NormSilu(norm, ops), nn.Identity()


def lay_channels_last(decoder: nn.Module) -> None:
    """Convolutions' weights where a GPU's half-precision kernels want them, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}  # of pictures and of videos
    for module in decoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            weight = module.weight
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


@dataclass
class _Captured:
    graph: Any
    latents: Tensor
    kept: dict[nn.Module, Tensor]
    """what the layers remember, read and written by the graph"""
    out: Tensor
    owner: Callable[[], StreamState | None] = field(default=lambda: None)
    """whose memory that is at present"""


class PieceGraphs:
    """Decodes all pieces of a stream but the first, which is a case of its own, by CUDA graphs: one for each shape,
    captured the second time it comes. What the layers remember stays where the graph reads and writes it."""

    def __init__(self, decode: Decode) -> None:
        self.decode_eagerly = decode
        self.failure: str | None = None
        """why nothing is captured any more"""
        self._capturing = Capturing("decoding")
        self._captured: dict[tuple[object, ...], _Captured | None] = {}

    def run(self, latents: Tensor, state: StreamState) -> Tensor:
        """As the decoder; a copy, as the next replay overwrites it."""
        if state.first or self.failure is not None:
            return self.decode_eagerly(latents, state)
        key = (latents.shape, latents.dtype)
        if key not in self._captured:
            return self._eagerly_at_first(key, latents, state)
        captured = self._captured[key]
        if captured is None:
            try:
                with torch.inference_mode(False), torch.no_grad():
                    captured = self._captured[key] = self._capture(latents, state.kept)
            except RuntimeError as error:
                self.failure = str(error).splitlines()[0]
                log.warning("decoding goes on without CUDA graphs: %s", self.failure)
                return self.decode_eagerly(latents, state)
        if state.kept.keys() != captured.kept.keys():
            return self.decode_eagerly(latents, state)
        _hand_over(captured, state)
        captured.latents.copy_(latents, non_blocking=True)
        captured.graph.replay()
        return captured.out.clone()

    def _eagerly_at_first(self, key: tuple[object, ...], latents: Tensor, state: StreamState) -> Tensor:
        """This also lets libraries allocate what they may not in a capture. Layers that begin to remember only now
        make it a case of its own."""
        before = set(state.kept)
        out = self.decode_eagerly(latents, state)
        if state.kept.keys() == before:
            self._captured[key] = None
        return out

    def _capture(self, latents: Tensor, kept: dict[nn.Module, Tensor]) -> _Captured:
        still = latents.clone()
        buffers = {layer: tensor.clone() for layer, tensor in kept.items()}
        graph, out = self._capturing.capture(lambda: decode_in_place(self.decode_eagerly, still, buffers))
        return _Captured(graph, still, buffers, out)


def decode_in_place(decode: Decode, latents: Tensor, kept: dict[nn.Module, Tensor]) -> Tensor:
    """Decodes a piece that is not a stream's first; what its layers remember is read from `kept` and written there."""
    state = StreamState(dict(kept))
    out = decode(latents, state)
    for layer, tensor in kept.items():
        tensor.copy_(state.kept[layer])
    return out


def _hand_over(captured: _Captured, state: StreamState) -> None:
    """Makes the graph's memory that of a stream; another's that is still going gets a copy of what was its own."""
    owner = captured.owner()
    if owner is not None and owner is not state:
        for layer, buffer in captured.kept.items():
            if owner.kept.get(layer) is buffer:
                owner.kept[layer] = buffer.clone()
    for layer, buffer in captured.kept.items():
        if state.kept[layer] is not buffer:
            buffer.copy_(state.kept[layer], non_blocking=True)
            state.kept[layer] = buffer
    captured.owner = weakref.ref(state)
